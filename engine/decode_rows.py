"""What a decode step needs to know of its sequences, as lists: one row each. Knows no tensor and no device."""

from collections.abc import Sequence as Rows
from dataclasses import dataclass

from engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class DecodeRows:
    """One new token per row: each sequence's last, which is the only one that is not computed."""

    token_ids: list[int]
    positions: list[int]
    slots: list[int]  # block_id * block_size + place in the block
    block_tables: list[list[int]]  # the blocks of positions 0..position, of different lengths

    @classmethod
    def of(cls, sequences: Rows[Sequence], block_size: int) -> "DecodeRows":
        """Raises AssertionError for a sequence of which more or less than the last token is to be computed."""
        for sequence in sequences:
            assert sequence.num_computed_tokens == sequence.num_tokens - 1, "decode computes exactly the last token"
        positions = [sequence.num_computed_tokens for sequence in sequences]
        tables = [
            sequence.block_table[: position // block_size + 1]
            for sequence, position in zip(sequences, positions, strict=True)
        ]
        return cls(
            token_ids=[sequence.token_ids[-1] for sequence in sequences],
            positions=positions,
            slots=[
                table[-1] * block_size + position % block_size
                for table, position in zip(tables, positions, strict=True)
            ],
            block_tables=tables,
        )

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def seq_lens(self) -> list[int]:
        """Tokens of each sequence, the new one included."""
        return [position + 1 for position in self.positions]

    @property
    def max_blocks(self) -> int:
        """Length of the longest block table."""
        return max(map(len, self.block_tables))

    def padded_tables(self) -> list[list[int]]:
        """All of one length, filled up with the sequence's own first block: what is masked may be multiplied, and
        another sequence's block might hold a NaN."""
        longest = self.max_blocks
        return [table + table[:1] * (longest - len(table)) for table in self.block_tables]
