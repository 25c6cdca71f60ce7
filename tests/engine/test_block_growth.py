"""A pool that grows: memory comes before its blocks are handed out, no sooner than needed, and may not come at all."""

import threading

import pytest

from engine.block_allocator import OutOfBlocks
from engine.block_growth import BlockGrowth, first_blocks, growth_of
from engine.block_space import BlockSpace
from errors import DeviceError
from settings.kv import KVSettings


class Memory:
    """Blocks that are reserved; there is room for `limit`."""

    def __init__(self, num_ready: int, limit: int) -> None:
        self.num_ready, self.limit = num_ready, limit
        self.steps: list[tuple[int, int]] = []

    def reserve(self, first: int, stop: int) -> None:
        assert first == self.num_ready, "a gap, or twice"
        if stop > self.limit:
            raise DeviceError("no room")
        self.num_ready = stop
        self.steps.append((first, stop))

    def room(self) -> int:
        return self.limit - self.num_ready


def space_over(
    memory: Memory, num_blocks: int, cache_blocks: int = 0, step: int = 4, cached: bool = False
) -> BlockSpace:
    growth = BlockGrowth(memory.num_ready, num_blocks, step, cache_blocks, memory.reserve, memory.room)
    return BlockSpace(num_blocks, 1, cached, growth)


def until_idle() -> None:
    for thread in threading.enumerate():
        if thread.name == "pool growth":
            thread.join(10)


def test_no_block_is_handed_out_before_its_memory_is_there() -> None:
    memory = Memory(8, 100)
    space = space_over(memory, 32)
    assert space.num_blocks == 32 == space.num_free
    held: list[int] = []
    for _ in range(16):
        held += space.allocate(2)
        assert max(held) < memory.num_ready
        space.check_integrity()
    assert sorted(held) == list(range(32))
    assert space.num_free == 0 and space.num_used == 32
    with pytest.raises(OutOfBlocks):
        space.allocate(1)
    until_idle()
    assert memory.num_ready == 32


def test_many_at_once_are_waited_for() -> None:
    memory = Memory(2, 100)
    space = space_over(memory, 30)
    assert len(set(space.allocate(29))) == 29
    until_idle()
    space.check_integrity()


def test_what_few_sequences_use_again_and_again_does_not_grow() -> None:
    memory = Memory(8, 100)
    space = space_over(memory, 64)
    for _ in range(50):
        held = space.allocate(4)
        space.free(held)
    until_idle()
    assert memory.steps == []


def test_the_next_step_is_made_ready_ahead() -> None:
    memory = Memory(8, 100)
    space = space_over(memory, 64)
    held = space.allocate(5)  # 3 are left, less than a step
    until_idle()
    assert memory.steps == [(8, 12)]
    assert space.num_used == len(held)


def test_cached_prefixes_give_way_before_it_grows() -> None:
    memory = Memory(8, 100)
    space = space_over(memory, 64, cached=True)
    for number in range(20):
        held = space.allocate(4)
        space.remember([number * 4 + place for place in range(4)], held)
        space.free(held)
        space.check_integrity()
    until_idle()
    assert memory.steps == [] and space.num_free == 64


def test_it_grows_for_cached_prefixes_up_to_a_bound() -> None:
    memory = Memory(8, 100)
    space = space_over(memory, 64, cache_blocks=24, cached=True)
    for number in range(20):
        held = space.allocate(4)
        space.remember([number * 4 + place for place in range(4)], held)
        space.free(held)
    until_idle()
    assert 24 <= memory.num_ready <= 28
    last = [76, 77, 78, 79]
    assert len(space.match([*last, 1])) == 4, "the newest prefix was given up"


def test_where_no_memory_is_left_it_is_a_smaller_pool() -> None:
    memory = Memory(4, 10)
    space = space_over(memory, 32)
    assert space.num_free == 10, "what cannot be had counts as free"
    held = space.allocate(6)
    until_idle()
    assert space.can_allocate(2) and not space.can_allocate(7)
    memory.limit = 8  # somebody else took it after we were asked
    with pytest.raises(OutOfBlocks):
        space.allocate(4)
    assert space.num_blocks == memory.num_ready == 8
    space.free(held)
    assert space.num_free == 8
    space.check_integrity()


def test_the_settings_in_blocks() -> None:
    settings = KVSettings(first_bytes=1000, cache_bytes=3000)
    assert first_blocks(settings, 100, 50) == 10
    assert first_blocks(settings, 100, 5) == 5
    assert first_blocks(settings, 3000, 5) == 1
    memory = Memory(10, 100)
    growth = growth_of(settings, 100, 50, memory.reserve, memory.room)
    assert growth is not None and (growth.num_ready, growth.num_blocks, growth.cache_blocks) == (10, 50, 30)
    assert growth_of(settings, 100, 8, memory.reserve, memory.room) is None
