"""Which bytes go where: blocks of one pool to blocks of another, as few copies as their order allows. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CopyRun:
    """One copy, contiguous or of equal rows at equal distances; offsets count from the first block of either side."""

    source_byte: int
    target_byte: int
    num_bytes: int  # of one row
    num_rows: int = 1
    source_pitch: int = 0  # bytes from row to row
    target_pitch: int = 0


@dataclass(frozen=True, slots=True)
class BlockCut:
    """Which part of a source block becomes which part of a target block: a run in each of `num_rows` equal rows.

    A block is [num_layers * 2] rows of KV heads, so the heads that two ranks share are such a cut.
    """

    source_block_bytes: int
    target_block_bytes: int
    num_rows: int = 1
    source_byte: int = 0  # in each row
    target_byte: int = 0
    row_bytes: int = 0  # of the run; 0: the whole row of the source

    @property
    def is_whole(self) -> bool:
        """Whether blocks are copied as they are."""
        return self.source_block_bytes == self.target_block_bytes == self.num_rows * self.run_bytes

    @property
    def source_row_bytes(self) -> int:
        """From row to row of a source block."""
        return self.source_block_bytes // self.num_rows

    @property
    def target_row_bytes(self) -> int:
        """From row to row of a target block."""
        return self.target_block_bytes // self.num_rows

    @property
    def run_bytes(self) -> int:
        """Bytes of the run in one row."""
        return self.row_bytes or self.source_row_bytes


def whole_blocks(block_bytes: int) -> BlockCut:
    """The cut between pools of one layout."""
    return BlockCut(block_bytes, block_bytes)


@dataclass(frozen=True, slots=True)
class BlockCopies:
    """Copies of block source_ids[i] of one pool into target_ids[i] of another, all cut alike."""

    cut: BlockCut
    source_ids: Sequence[int]
    target_ids: Sequence[int]

    def runs(self) -> list[CopyRun]:
        """One by one, as few as their order allows."""
        cut = self.cut
        if cut.is_whole:
            return merge_runs(self.source_ids, self.target_ids, cut.source_block_bytes)
        return [
            CopyRun(
                source_byte=source * cut.source_block_bytes + cut.source_byte,
                target_byte=target * cut.target_block_bytes + cut.target_byte,
                num_bytes=cut.run_bytes,
                num_rows=cut.num_rows,
                source_pitch=cut.source_row_bytes,
                target_pitch=cut.target_row_bytes,
            )
            for source, target in zip(self.source_ids, self.target_ids, strict=True)
        ]


def merge_runs(source_ids: Sequence[int], target_ids: Sequence[int], block_bytes: int) -> list[CopyRun]:
    """Copies of block source_ids[i] to target_ids[i]; neighbours on both sides become one run."""
    runs: list[CopyRun] = []
    first = 0
    for index in range(1, len(source_ids) + 1):
        is_next = (
            index < len(source_ids)
            and source_ids[index] == source_ids[index - 1] + 1
            and target_ids[index] == target_ids[index - 1] + 1
        )
        if not is_next:
            runs.append(
                CopyRun(source_ids[first] * block_bytes, target_ids[first] * block_bytes, (index - first) * block_bytes)
            )
            first = index
    return runs
