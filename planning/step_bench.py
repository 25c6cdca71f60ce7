"""Steps of a model in this process, timed: no queue, no transfer, no other process.

With the C++ kernels on exactly the threads it is told, whatever the ledger says. The only files of planning/ that know
the engine are this one and those that run it.
"""

import time
from collections.abc import Callable

import torch

from engine.decode_graphs import DecodeGraphs
from engine.kv_pool import KVPool
from engine.loading import decode_graphs, load
from engine.model_runner import ModelRunner, PrefillChunk, alone
from engine.sequence import Sequence
from kernels import cpu_build
from kernels.cores import take_cores
from messages.request import SamplingParams
from messages.worker_status import Role
from settings.loading import Settings

POOL_TOKENS = 1 << 15  # of the grid's largest decode step; memory of the measurement, not a worker's


class StepBench:
    """A loaded model and a pool full of numbers."""

    def __init__(self, settings: Settings, report: Callable[[str], None]) -> None:
        """Loads the model as a worker does. Raises StartupError."""
        loaded = load(settings, Role.DECODE, settings.decode.num_threads, report)
        self.device = loaded.model.device
        self.num_blocks = loaded.num_blocks
        self.block_size = loaded.layout.block_size
        self.longest = min(settings.model.max_total_tokens, loaded.model.config.max_position_embeddings)
        self.num_threads = torch.get_num_threads() if self.device.type == "cpu" else 0
        num_blocks = min(loaded.num_blocks, POOL_TOKENS // self.block_size)
        pool = KVPool.allocate(loaded.layout, num_blocks, self.device)
        pool.tensor.normal_()  # zeroes would be one page that never leaves the cache
        graphs: DecodeGraphs | None = decode_graphs(settings, loaded.model, pool, report)
        self._runner = ModelRunner(loaded.model, pool, alone, graphs)
        self.pool_tokens = num_blocks * self.block_size

    def use_threads(self, num_threads: int) -> None:
        """From now on; of no meaning on a GPU."""
        if self.device.type != "cpu":
            return
        library = cpu_build.loaded()
        if library is None:
            torch.set_num_threads(num_threads)
        else:
            take_cores(library, num_threads)

    def prefill_s(self, num_tokens: int, context: int) -> float:
        """Seconds of a step that computes the last so many tokens of one prompt, after `context` others."""
        (sequence,) = self._sequences(1, context + num_tokens)
        sequence.num_computed_tokens = context
        began = time.perf_counter()
        self._runner.prefill([PrefillChunk(sequence, num_tokens)])
        return time.perf_counter() - began

    def decode_s(self, batch: int, context: int) -> float:
        """Seconds of a step of so many sequences, each after `context` tokens."""
        sequences = self._sequences(batch, context + 1)
        for sequence in sequences:
            sequence.num_computed_tokens = context
        began = time.perf_counter()
        self._runner.decode(sequences)
        return time.perf_counter() - began

    def _sequences(self, num: int, num_tokens: int) -> list[Sequence]:
        each = -(-num_tokens // self.block_size)
        return [
            Sequence(
                f"plan {number}",
                [1] * num_tokens,
                num_tokens,
                SamplingParams(seed=0),
                block_table=list(range(number * each, (number + 1) * each)),
            )
            for number in range(num)
        ]
