"""Which bytes go where: blocks of one pool to blocks of another, as few copies as their order allows. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CopyRun:
    """One contiguous copy; offsets count from the first block of either side."""

    source_byte: int
    target_byte: int
    num_bytes: int


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
