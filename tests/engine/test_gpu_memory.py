"""How much of a GPU the pool gets, in round numbers."""

import re

import pytest

from engine.gpu_memory import MemoryReading, MemoryShare, pool_blocks
from errors import DeviceError

GIB = 1 << 30
# 80 GiB; 20 in use after the step, 16 of it our tensors; the step took 3 on top.
READING = MemoryReading(total=80 * GIB, used=20 * GIB, own=16 * GIB, step=3 * GIB)


def test_alone_everything_in_use_counts() -> None:
    share = MemoryShare(0.9, 1)
    assert share.pool_bytes(READING, 1) == int(80 * GIB * 0.9) - 20 * GIB - 3 * GIB
    assert share.pool_bytes(READING, 2) == int(80 * GIB * 0.9) - 20 * GIB - 6 * GIB


def test_workers_that_share_count_their_own_and_never_more_than_is_free() -> None:
    share = MemoryShare(0.9, 2)
    assert share.pool_bytes(READING, 1) == int(80 * GIB * 0.45) - 16 * GIB - 3 * GIB
    crowded = MemoryReading(total=80 * GIB, used=70 * GIB, own=16 * GIB, step=3 * GIB)
    assert share.pool_bytes(crowded, 1) == 10 * GIB - 3 * GIB


def test_two_sharers_never_take_more_than_the_fraction_together() -> None:
    """The second reads what the first has taken already: its pool, its weights, its context."""
    share, context = MemoryShare(0.85, 2), GIB // 2
    first = share.pool_bytes(MemoryReading(80 * GIB, 16 * GIB + context, 16 * GIB, 2 * GIB), 1)
    used = 16 * GIB + context + first + 2 * GIB
    second = share.pool_bytes(MemoryReading(80 * GIB, used + 16 * GIB + context, 16 * GIB, 2 * GIB), 1)
    assert used + second + 16 * GIB + context + 2 * GIB <= 80 * GIB
    assert first == second


def test_whole_blocks() -> None:
    blocks = pool_blocks(READING, MemoryShare(0.5, 1), 1, block_bytes=GIB * 2 // 3, request_tokens=16, block_size=16)
    assert blocks == 17 * 3 // 2


def test_one_request_must_fit() -> None:
    share = MemoryShare(0.3, 1)  # 1 GiB is left
    assert pool_blocks(READING, share, 1, block_bytes=GIB // 4, request_tokens=64, block_size=16) == 4
    wanted = re.escape("one request of 65 tokens takes 1.25 GiB and 1.00 GiB are left of 0.3 x 80.00 GiB")
    with pytest.raises(DeviceError, match=wanted) as failure:
        pool_blocks(READING, share, 1, block_bytes=GIB // 4, request_tokens=65, block_size=16)
    remedy = "lower PDQ_MODEL__MAX_TOTAL_TOKENS to 64, or raise PDQ_KV__GPU_MEMORY_FRACTION to 0.31"
    assert str(failure.value).endswith(remedy)
    assert pool_blocks(READING, MemoryShare(0.31, 1), 1, block_bytes=GIB // 4, request_tokens=65, block_size=16) >= 5


def test_a_gpu_that_is_too_small_is_not_to_be_helped_by_settings() -> None:
    with pytest.raises(DeviceError, match="larger GPU, or more of them"):
        pool_blocks(READING, MemoryShare(0.01, 1), 1, block_bytes=80 * GIB, request_tokens=65, block_size=16)


def test_less_than_nothing_is_left() -> None:
    with pytest.raises(DeviceError, match=r"0\.00 GiB are left of 0\.2 x 80\.00 GiB / 2 workers"):
        pool_blocks(READING, MemoryShare(0.2, 2), 1, block_bytes=GIB, request_tokens=1, block_size=16)
