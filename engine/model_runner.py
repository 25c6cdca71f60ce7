"""One forward pass over some sequences: the tensors for it, the pass, the next tokens. Knows no queue and no policy.

Who runs, in which chunks and on which blocks is decided by the caller; the runner computes, writes KV into the blocks
it is given, and advances `num_computed_tokens`. It does not append tokens.
"""

from collections.abc import Iterator
from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.decode_graphs import DecodeGraphs
from engine.decode_rows import DecodeRows
from engine.kv_pool import KVLayout, KVPool
from engine.model import DecodeMeta, Model
from engine.sampler import Sampled, SamplingRow, select_sampler
from engine.sequence import Sequence
from kernels.ops import PrefillMeta

SCORE_CHUNK_TOKENS = 512  # bounds the activations of a long prompt; a score has no one to share a step with


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """The next `num_tokens` uncomputed tokens of a sequence. Its block table covers them."""

    sequence: Sequence
    num_tokens: int


class ModelRunner:
    """A model on a pool. One thread at a time."""

    def __init__(self, model: Model, pool: KVPool, graphs: DecodeGraphs | None = None) -> None:
        """`graphs`: recorded decode steps of this model on this pool, for the batches that they can run."""
        self.model = model
        self.pool = pool
        self.graphs = graphs
        self.eos_token_ids = model.config.eos_token_ids
        self._sampler = select_sampler(model.device)

    @property
    def kv_layout(self) -> KVLayout:
        """The layout of the pool."""
        return self.pool.layout

    @torch.inference_mode()
    def prefill(self, chunks: list[PrefillChunk]) -> list[Sampled | None]:
        """Compute the chunks in one pass. A chunk that reaches its sequence's end gets the next token, others None."""
        if not chunks:
            return []
        hidden = self._forward_chunks(chunks)
        ends = [
            index
            for index, chunk in enumerate(chunks)
            if chunk.sequence.num_computed_tokens == chunk.sequence.num_tokens
        ]
        sampled: Iterator[Sampled] = iter(())
        if ends:
            sampled = iter(self._choose(self.model.logits(hidden[ends]), [chunks[index].sequence for index in ends]))
        ended = set(ends)
        return [next(sampled) if index in ended else None for index in range(len(chunks))]

    @torch.inference_mode()
    def decode(self, sequences: list[Sequence]) -> list[Sampled]:
        """Compute the last token of each sequence and choose the next. Everything before it must be computed."""
        if not sequences:
            return []
        rows = DecodeRows.of(sequences, self.pool.layout.block_size)
        self._clear_unwritten(sequences, rows.positions)
        if self.graphs is not None and self.graphs.can_run(rows):
            logits = self.graphs.run(rows)
        else:
            logits = self.model.logits(self._forward_rows(rows))
        for sequence in sequences:
            sequence.num_computed_tokens += 1
        return self._choose(logits, sequences)

    @torch.inference_mode()
    def score(self, sequence: Sequence) -> float:
        """Compute what is left of the sequence and return the reward head's raw output at its last token."""
        # The last token is computed again when its KV is there already: KV has no hidden state to score.
        sequence.num_computed_tokens = min(sequence.num_computed_tokens, sequence.num_tokens - 1)
        while True:
            num_tokens = min(SCORE_CHUNK_TOKENS, sequence.num_tokens - sequence.num_computed_tokens)
            hidden = self._forward_chunks([PrefillChunk(sequence, num_tokens)])
            if _is_computed(sequence):
                return float(self.model.score(hidden)[0])

    def _forward_rows(self, rows: DecodeRows) -> Tensor:
        """Launch a decode step kernel by kernel. -> [num_rows, hidden]"""
        meta = DecodeMeta(
            block_tables=self._tensor(rows.padded_tables(), torch.int32),
            seq_lens=self._tensor(rows.seq_lens, torch.int32),
        )
        return self.model.forward(
            self._tensor(rows.token_ids), self._tensor(rows.positions), self._tensor(rows.slots), meta, self.pool
        )

    def _forward_chunks(self, chunks: list[PrefillChunk]) -> Tensor:
        """Compute the chunks and advance their sequences. -> [num_chunks, hidden], each chunk's last token"""
        block_size = self.pool.layout.block_size
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        cu_seqlens_q = [0]
        for chunk in chunks:
            sequence, first = chunk.sequence, chunk.sequence.num_computed_tokens
            end = first + chunk.num_tokens
            assert chunk.num_tokens > 0 and end <= sequence.num_tokens, "a chunk is of uncomputed tokens"
            token_ids += sequence.token_ids[first:end]
            positions += range(first, end)
            slots += (
                sequence.block_table[position // block_size] * block_size + position % block_size
                for position in range(first, end)
            )
            cu_seqlens_q.append(len(token_ids))
        self._clear_unwritten(
            [chunk.sequence for chunk in chunks],
            [chunk.sequence.num_computed_tokens for chunk in chunks],
            [chunk.num_tokens for chunk in chunks],
        )
        meta = PrefillMeta.of(
            cu_seqlens_q,
            [chunk.sequence.num_computed_tokens for chunk in chunks],
            [chunk.sequence.block_table for chunk in chunks],
            self.model.device,
        )
        hidden = self.model.forward(
            self._tensor(token_ids), self._tensor(positions), self._tensor(slots), meta, self.pool
        )
        for chunk in chunks:
            chunk.sequence.num_computed_tokens += chunk.num_tokens
        return hidden[self._tensor([end - 1 for end in cu_seqlens_q[1:]])]

    def _clear_unwritten(
        self, sequences: Rows[Sequence], firsts: Rows[int], num_tokens: Rows[int] | None = None
    ) -> None:
        """Zero the last block of each sequence when its first token is about to be written.

        The block's unwritten end is read and masked, and zero weight times a former owner's NaN would still be NaN.
        """
        if not self.model.needs_clean_tails:
            return
        block_size = self.pool.layout.block_size
        for index, (sequence, first) in enumerate(zip(sequences, firsts, strict=True)):
            end = first + (1 if num_tokens is None else num_tokens[index])
            last_block = (end - 1) // block_size
            if end % block_size and first <= last_block * block_size:
                self.pool.tensor[sequence.block_table[last_block]].zero_()

    def _choose(self, logits: Tensor, sequences: list[Sequence]) -> list[Sampled]:
        rows = [
            SamplingRow(
                params=sequence.sampling,
                prompt_token_ids=sequence.prompt_token_ids,
                output_token_ids=sequence.output_token_ids,
                eos_token_ids=self.eos_token_ids,
            )
            for sequence in sequences
        ]
        return self._sampler(logits, rows)

    def _tensor(self, values: list[int] | list[list[int]], dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=self.model.device)


def _is_computed(sequence: Sequence) -> bool:
    return sequence.num_computed_tokens == sequence.num_tokens
