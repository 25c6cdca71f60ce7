"""BlockAllocator: blocks come and go with their holders."""

import pytest

from engine.block_allocator import BlockAllocator, OutOfBlocks


def test_allocate_gives_distinct_blocks_until_none_is_left() -> None:
    allocator = BlockAllocator(5)
    blocks = allocator.allocate(2) + allocator.allocate(3)
    assert sorted(blocks) == list(range(5)) and allocator.num_free == 0
    allocator.check_integrity()
    with pytest.raises(OutOfBlocks, match="1 blocks wanted, 0 of 5 are free"):
        allocator.allocate(1)


def test_a_refused_allocation_takes_nothing() -> None:
    allocator = BlockAllocator(3)
    allocator.allocate(1)
    with pytest.raises(OutOfBlocks):
        allocator.allocate(3)
    assert allocator.num_free == 2
    assert allocator.allocate(0) == []
    allocator.check_integrity()


def test_a_shared_block_is_free_when_the_last_holder_leaves() -> None:
    allocator = BlockAllocator(2)
    (block,) = allocator.allocate(1)
    allocator.share([block])
    assert allocator.ref_count(block) == 2
    allocator.free([block])
    assert (allocator.ref_count(block), allocator.num_free) == (1, 1)
    allocator.free([block])
    assert (allocator.ref_count(block), allocator.num_free) == (0, 2)
    allocator.check_integrity()


def test_a_free_block_can_be_neither_freed_nor_shared() -> None:
    allocator = BlockAllocator(2)
    (block,) = allocator.allocate(1)
    allocator.free([block])
    with pytest.raises(ValueError, match="freed twice"):
        allocator.free([block])
    with pytest.raises(ValueError, match="cannot be shared"):
        allocator.share([block])
    allocator.check_integrity()


def test_the_watcher_hears_when_a_block_gets_or_loses_its_second_holder() -> None:
    allocator = BlockAllocator(1)
    heard: list[int] = []
    allocator.watch(lambda block_id: heard.append(allocator.ref_count(block_id)))
    block = allocator.allocate(1)
    for act in (allocator.share, allocator.share, allocator.free, allocator.free, allocator.free):
        act(block)
    assert heard == [2, 1]


@pytest.mark.parametrize("damage", ["lost", "twice", "free_and_used"])
def test_check_integrity_sees(damage: str) -> None:
    allocator = BlockAllocator(4)
    (block,) = allocator.allocate(1)
    if damage == "lost":
        allocator._free.pop()
    elif damage == "twice":
        allocator._free.append(allocator._free[0])
    else:
        allocator._free[0] = block
    with pytest.raises(AssertionError):
        allocator.check_integrity()
