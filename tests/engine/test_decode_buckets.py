"""Which batch sizes have a graph."""

from hypothesis import given
from hypothesis import strategies as st

from engine.decode_buckets import LARGEST_BUCKET, bucket_of, buckets


def test_examples() -> None:
    assert buckets(1) == [1]
    assert buckets(5) == [1, 2, 4, 5]
    assert buckets(64) == [1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64]
    assert buckets(1000)[-1] == LARGEST_BUCKET
    assert bucket_of(3, [1, 2, 4]) == 4
    assert bucket_of(5, [1, 2, 4]) is None


@given(max_running=st.integers(1, 600), num_rows=st.integers(1, 600))
def test_the_smallest_that_holds_the_batch(max_running: int, num_rows: int) -> None:
    sizes = buckets(max_running)
    assert sizes == sorted(set(sizes)) and sizes[-1] == min(max_running, LARGEST_BUCKET)
    size = bucket_of(num_rows, sizes)
    if num_rows > sizes[-1]:
        assert size is None
    else:
        assert size is not None and size >= num_rows
        assert all(smaller < num_rows for smaller in sizes if smaller < size)
        # Padding: never the double, beyond 64 rows never a quarter.
        assert size < 2 * num_rows
        assert num_rows <= 64 or size - num_rows < num_rows / 4
