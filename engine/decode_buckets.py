"""The batch sizes that decode has a CUDA graph for. Arithmetic alone."""

from bisect import bisect_left
from collections.abc import Sequence

# Beyond it a step computes for so long that launching its kernels one by one hides behind it.
LARGEST_BUCKET = 256


def buckets(max_running: int) -> list[int]:
    """1, 2, 4, 8, then every 8 to 64 and every 16 to 256, cut at `max_running`, which is the last one if it can be.

    A batch of more than 4 rows is padded by less than its own size, one of more than 64 by less than a quarter.
    """
    last = min(max_running, LARGEST_BUCKET)
    steps = [1, 2, 4, *range(8, 64, 8), *range(64, LARGEST_BUCKET, 16)]
    return [*(size for size in steps if size < last), last]


def bucket_of(num_rows: int, sizes: Sequence[int]) -> int | None:
    """The smallest of the ascending `sizes` that holds `num_rows`; None when they are more than the largest."""
    place = bisect_left(sizes, num_rows)
    return sizes[place] if place < len(sizes) else None
