"""What a prefill step needs to know of its sequences, as lists: tokens packed, one row per chunk. Knows no tensor."""

from collections.abc import Sequence as Rows
from dataclasses import dataclass

from engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """The next `num_tokens` uncomputed tokens of a sequence. Its block table covers them."""

    sequence: Sequence
    num_tokens: int

    @property
    def is_last(self) -> bool:
        """Whether nothing of the sequence is left to compute after it."""
        return self.sequence.num_computed_tokens + self.num_tokens == self.sequence.num_tokens


@dataclass(frozen=True, slots=True)
class PrefillRows:
    """The chunks' tokens one after the other, and where each chunk begins."""

    token_ids: list[int]
    positions: list[int]
    slots: list[int]  # block_id * block_size + place in the block
    cu_seqlens_q: list[int]  # prefix sums of the chunks' lengths, from 0
    context_lens: list[int]  # tokens of each sequence that are computed already
    block_tables: list[list[int]]

    @classmethod
    def of(cls, chunks: Rows[PrefillChunk], block_size: int) -> "PrefillRows":
        """Raises AssertionError for a chunk of tokens that are not there."""
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
        return cls(
            token_ids,
            positions,
            slots,
            cu_seqlens_q,
            context_lens=[chunk.sequence.num_computed_tokens for chunk in chunks],
            block_tables=[list(chunk.sequence.block_table) for chunk in chunks],
        )

    @property
    def last_tokens(self) -> list[int]:
        """Where each chunk's last token is among the packed ones."""
        return [end - 1 for end in self.cu_seqlens_q[1:]]

    @property
    def seq_lens(self) -> list[int]:
        """Tokens of each sequence that are computed after the step."""
        return [
            context + end - begin
            for context, begin, end in zip(
                self.context_lens, self.cu_seqlens_q[:-1], self.cu_seqlens_q[1:], strict=True
            )
        ]
