"""Decode steps as recorded launches: one graph per bucket of batch sizes, replayed on inputs that stay in place.

Launching the few hundred kernels of a step one by one takes the host longer than a GPU needs for a small batch;
replaying them is one call. A batch is padded to its bucket with rows that touch nothing. All graphs share one memory
pool, in which only one runs at a time, and one tensor of logits. Knows no CUDA: what records is a `GraphBackend`.
"""

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from engine.decode_buckets import bucket_of, buckets
from engine.decode_inputs import DecodeInputs
from engine.decode_rows import DecodeRows
from engine.kv_pool import KVPool
from engine.model import DecodeMeta
from engine.served_model import ServedModel


class GraphBackend(Protocol):
    """Records what a function launches."""

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """Run `run` until it is warm, record it, and return what launches the same work again on the same memory.

        `run` must not wait for the device, nor let what it does depend on values there.
        """

    def host_buffer(self, num_bytes: int) -> Tensor:
        """uint8 [num_bytes] on the host, from where a copy to the device need not be waited for."""


class DecodeGraphs:
    """The graphs of one model on one pool. One thread at a time."""

    @torch.inference_mode()
    def __init__(
        self,
        model: ServedModel,
        pool: KVPool,
        max_running: int,
        max_tokens: int,
        backend: GraphBackend,
        report: Callable[[str], None],
    ) -> None:
        """Captures all graphs, for sequences of up to `max_tokens`; `report` is told how far that is."""
        sizes = buckets(max_running)
        # As wide as the longest sequence needs: the kernels never read past a row's length, so width costs nothing
        # but the 4 bytes an entry, and a graph per width would be captured in vain.
        max_blocks = min(-(-max_tokens // pool.layout.block_size), pool.num_blocks)
        self._model, self._pool, self._sizes = model, pool, sizes
        self._inputs = DecodeInputs(sizes[-1], max_blocks, model.device, backend.host_buffer)
        self._logits = torch.zeros((sizes[-1], model.config.vocab_size), dtype=torch.float32, device=model.device)
        self._replay: dict[int, Callable[[], None]] = {}
        # Largest first: what the smaller ones need then fits into the memory that is there.
        for count, size in enumerate(reversed(sizes), start=1):
            report(f"capturing CUDA graphs {count}/{len(sizes)}")
            self._replay[size] = backend.capture(partial(self._run, size))

    def can_run(self, rows: DecodeRows) -> bool:
        """Whether there is a graph for the batch: it may be too large, or a sequence too long."""
        return bucket_of(len(rows), self._sizes) is not None and rows.max_blocks <= self._inputs.max_blocks

    @torch.inference_mode()
    def run(self, rows: DecodeRows) -> Tensor:
        """Launch the step. -> float32 [len(rows), vocab], good until the next step"""
        size = bucket_of(len(rows), self._sizes)
        assert size is not None, "the batch is larger than every graph"
        self._inputs.fill(rows, size)
        self._replay[size]()
        return self._logits[: len(rows)]

    def _run(self, size: int) -> None:
        inputs = self._inputs
        hidden = self._model.forward(
            inputs.token_ids[:size],
            inputs.positions[:size],
            inputs.slot_mapping[:size],
            DecodeMeta(inputs.block_tables[:size], inputs.seq_lens[:size]),
            self._pool,
        )
        self._model.logits(hidden, out=self._logits[:size])
