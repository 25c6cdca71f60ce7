"""Measures how fast this worker prefills, before it serves: without a figure it would never take a first prompt."""

import time

from decode_worker.prefill_pace import PrefillPace
from engine.block_space import BlockSpace
from engine.model_runner import ModelRunner, PrefillChunk
from engine.sequence import Sequence
from messages.request import SamplingParams

LENGTHS = (32, 32, 128)  # tokens; the first is for what happens once


def measure_pace(runner: ModelRunner, space: BlockSpace, pace: PrefillPace) -> None:
    """A few short steps on blocks that are free again after it; what does not fit the pool is left out."""
    for number, num_tokens in enumerate(LENGTHS):
        num_blocks = -(-num_tokens // space.block_size)
        if not space.can_allocate(num_blocks):
            return
        sequence = Sequence("probe", [0] * num_tokens, num_tokens, SamplingParams(seed=0))
        sequence.block_table = space.allocate(num_blocks)
        began = time.perf_counter()
        runner.prefill([PrefillChunk(sequence, num_tokens)])
        if number > 0:
            pace.note(num_tokens, time.perf_counter() - began)
        space.free(sequence.block_table)
