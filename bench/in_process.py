"""The prefill of a prompt in this process, timed: what the first token costs without HTTP, queues and other processes.

The one file of bench/ that imports the engine (and so torch); `cli.py` imports it inside the command that needs it.
"""

import time
from collections.abc import Callable

import torch

from engine.block_allocator import BlockAllocator
from engine.kv_pool import KVPool
from engine.loading import load
from engine.model_runner import ModelRunner, PrefillChunk
from engine.sequence import Sequence
from messages.request import SamplingParams
from messages.worker_status import Role
from settings.loading import Settings


class InProcessPrefill:
    """A loaded model and a pool for one prompt; no prefix cache."""

    def __init__(
        self, settings: Settings, max_prompt_tokens: int, num_threads: int, report: Callable[[str], None]
    ) -> None:
        """Loads the model as a prefill worker does. Raises StartupError."""
        loaded = load(settings, Role.PREFILL, num_threads, report)
        num_blocks = -(-max_prompt_tokens // loaded.layout.block_size)
        pool = KVPool.allocate(loaded.layout, num_blocks, torch.device(loaded.model.device))
        self._runner = ModelRunner(loaded.model, pool)
        self._allocator = BlockAllocator(num_blocks)
        self._block_size = loaded.layout.block_size
        self._token_budget = settings.prefill.token_budget_on(loaded.model.device.type)
        self.description = (
            f"{loaded.layout.dtype}, {torch.get_num_threads()} compute threads, steps of {self._token_budget}"
        )

    def prefill(self, prompt_token_ids: list[int]) -> float:
        """Seconds from the prompt to its first sampled token, in the chunks a prefill worker would compute."""
        begin_s = time.perf_counter()
        sequence = Sequence("bench", list(prompt_token_ids), len(prompt_token_ids), SamplingParams(seed=0))
        sequence.block_table = self._allocator.allocate(sequence.num_blocks(self._block_size))
        try:
            sampled = None
            while sampled is None:
                num_tokens = min(self._token_budget, sequence.num_tokens - sequence.num_computed_tokens)
                (sampled,) = self._runner.prefill([PrefillChunk(sequence, num_tokens)])
            return time.perf_counter() - begin_s
        finally:
            self._allocator.free(sequence.block_table)
