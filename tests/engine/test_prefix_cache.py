"""PrefixCache and BlockSpace: what is found, what is evicted and in which order, and that no block is ever lost."""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import engine.prefix_cache
from engine.block_allocator import BlockAllocator, OutOfBlocks
from engine.block_space import BlockSpace
from engine.prefix_cache import PrefixCache

SIZE = 4


def make(num_blocks: int) -> tuple[BlockAllocator, PrefixCache]:
    allocator = BlockAllocator(num_blocks)
    return allocator, PrefixCache(allocator, SIZE)


def insert(allocator: BlockAllocator, cache: PrefixCache, token_ids: list[int]) -> list[int]:
    """Computes (as it were) and remembers the prompt, then lets go of it; returns its blocks."""
    blocks = allocator.allocate(-(-len(token_ids) // SIZE))
    cache.insert(token_ids, blocks)
    allocator.free(blocks)
    return blocks


def found(allocator: BlockAllocator, cache: PrefixCache, token_ids: list[int]) -> list[int]:
    blocks = cache.match(token_ids, len(token_ids))
    allocator.free(blocks)
    return blocks


def test_match_finds_the_longest_prefix_in_whole_blocks() -> None:
    allocator, cache = make(8)
    blocks = insert(allocator, cache, list(range(10)))  # two full blocks and a half
    assert cache.num_blocks == 2 and allocator.num_free == 6
    assert found(allocator, cache, list(range(10))) == blocks[:2]
    assert found(allocator, cache, [*range(4), 99, 5, 6, 7]) == blocks[:1]
    assert found(allocator, cache, [99, *range(1, 8)]) == []
    assert found(allocator, cache, list(range(3))) == []


def test_equal_tokens_after_another_prefix_are_another_block() -> None:
    allocator, cache = make(8)
    one = insert(allocator, cache, [1, 1, 1, 1, 5, 5, 5, 5])
    two = insert(allocator, cache, [2, 2, 2, 2, 5, 5, 5, 5])
    assert found(allocator, cache, [1, 1, 1, 1, 5, 5, 5, 5]) == one
    assert found(allocator, cache, [2, 2, 2, 2, 5, 5, 5, 5]) == two
    assert found(allocator, cache, [5, 5, 5, 5]) == []


@pytest.mark.parametrize(("max_tokens", "num_blocks"), [(8, 2), (7, 1), (4, 1), (3, 0)])
def test_match_stays_within_max_tokens(max_tokens: int, num_blocks: int) -> None:
    allocator, cache = make(4)
    insert(allocator, cache, list(range(8)))
    assert len(cache.match(list(range(8)), max_tokens)) == num_blocks


def test_tokens_are_compared_when_hashes_collide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.prefix_cache, "_key", lambda parent, tokens: b"same")
    allocator, cache = make(4)
    blocks = insert(allocator, cache, [1, 2, 3, 4])
    assert insert(allocator, cache, [5, 6, 7, 8]) != [] and cache.num_blocks == 1
    assert found(allocator, cache, [5, 6, 7, 8]) == []
    assert found(allocator, cache, [1, 2, 3, 4]) == blocks


def test_a_second_copy_of_a_prefix_is_not_kept_but_its_continuation_is() -> None:
    allocator, cache = make(8)
    first = allocator.allocate(1)
    second = allocator.allocate(2)
    cache.insert([1, 2, 3, 4], first)
    cache.insert([1, 2, 3, 4, 5, 6, 7, 8], second)
    allocator.free(first)
    cache.check_integrity()
    # The first block is nobody's now, but its child is in use: evicting it would orphan the child.
    assert cache.num_evictable == 0 and cache.evict(8) == 0
    allocator.free(second)
    cache.check_integrity()
    assert cache.num_evictable == 2
    assert found(allocator, cache, [1, 2, 3, 4, 5, 6, 7, 8]) == [first[0], second[1]]
    assert allocator.num_free == 6


def test_eviction_takes_the_least_recently_used_leaf_first() -> None:
    allocator, cache = make(8)
    a = [1] * 4
    insert(allocator, cache, a + [2] * 4)  # a - b
    insert(allocator, cache, a + [3] * 4)  # a - c
    insert(allocator, cache, [4] * 4)  # d
    found(allocator, cache, a + [2] * 4)  # b is now the youngest
    order = []
    while cache.num_blocks:
        assert cache.evict(1) == 1
        cache.check_integrity()
        names = {"b": a + [2] * 4, "c": a + [3] * 4, "d": [4] * 4, "a": a}
        alive = {name for name, ids in names.items() if len(found_quietly(cache, ids)) == len(ids) // SIZE}
        order.append(alive)
    assert order == [{"a", "b", "d"}, {"a", "b"}, {"a"}, set()]
    assert allocator.num_free == 8 and cache.evict(1) == 0


def found_quietly(cache: PrefixCache, token_ids: list[int]) -> list[int]:
    """The cached blocks of a prompt, without a use that would change the order of eviction."""
    blocks: list[int] = []
    parent = None
    for content in cache._full_blocks(token_ids, ()):
        node = cache._nodes.get(engine.prefix_cache._key(parent, content))
        if node is None:
            break
        blocks.append(node.block_id)
        parent = node
    return blocks


def test_blocks_in_use_are_not_evicted() -> None:
    allocator, cache = make(4)
    insert(allocator, cache, list(range(8)))
    held = cache.match(list(range(8)), 4)
    assert cache.num_evictable == 1 and cache.evict(9) == 1
    assert found(allocator, cache, list(range(8))) == held
    cache.check_integrity()


def test_clear_leaves_what_others_hold() -> None:
    allocator, cache = make(4)
    insert(allocator, cache, list(range(8)))
    held = cache.match(list(range(8)), 4)
    cache.clear()
    assert (cache.num_blocks, cache.num_evictable, allocator.num_free) == (0, 0, 3)
    assert found(allocator, cache, list(range(8))) == []
    allocator.free(held)
    assert allocator.num_free == 4
    cache.check_integrity()
    allocator.check_integrity()


def test_the_heap_of_leaves_stays_small_without_evictions() -> None:
    allocator, cache = make(4)
    insert(allocator, cache, list(range(8)))
    for _ in range(2000):
        found(allocator, cache, list(range(8)))
    assert len(cache._leaves) < 100
    cache.check_integrity()


# ---- BlockSpace


def test_space_never_matches_all_of_a_prompt() -> None:
    space = BlockSpace(4, SIZE, prefix_cache=True)
    blocks = space.allocate(2)
    space.remember(list(range(8)), blocks)
    space.free(blocks)
    assert space.match(list(range(8))) == blocks[:1]
    assert space.match(list(range(9))) == blocks
    assert space.match([]) == []


def test_space_evicts_only_what_it_needs_and_counts_cached_blocks_as_free() -> None:
    space = BlockSpace(4, SIZE, prefix_cache=True)
    blocks = space.allocate(3)
    space.remember(list(range(12)), blocks)
    assert (space.num_free, space.num_used) == (1, 3)
    space.free(blocks)
    assert (space.num_free, space.num_used) == (4, 0)
    taken = space.allocate(2)  # one was free, one is evicted: the last
    assert blocks[2] in taken and space.match(list(range(13))) == blocks[:2]
    assert (space.num_free, space.num_used) == (0, 4) and not space.can_allocate(1)
    with pytest.raises(OutOfBlocks, match="1 blocks wanted, 0 of 4 are free"):
        space.allocate(1)
    space.check_integrity()


def test_a_refused_allocation_evicts_nothing() -> None:
    space = BlockSpace(4, SIZE, prefix_cache=True)
    blocks = space.allocate(2)
    space.remember(list(range(8)), blocks)
    space.free(blocks)
    with pytest.raises(OutOfBlocks):
        space.allocate(5)
    assert space.match(list(range(9))) == blocks


def test_space_without_a_cache_remembers_nothing() -> None:
    space = BlockSpace(4, SIZE, prefix_cache=False)
    blocks = space.allocate(2)
    space.remember(list(range(8)), blocks)
    space.free(blocks)
    assert space.match(list(range(9))) == [] and space.num_free == 4
    space.forget()
    space.check_integrity()


class SpaceMachine(RuleBasedStateMachine):
    """Any order of use against a model: who holds which blocks, and what tokens a block holds the KV of."""

    @initialize(cached=st.booleans())
    def start(self, cached: bool) -> None:
        self.space = BlockSpace(8, 2, prefix_cache=cached)
        self.cached = cached
        self.holders: list[tuple[list[int], list[int]]] = []  # (token ids, blocks)
        self.content: dict[int, tuple[int, ...]] = {}  # block -> the whole prefix that its KV stands for

    @rule(token_ids=st.lists(st.integers(0, 1), min_size=1, max_size=9))
    def admit(self, token_ids: list[int]) -> None:
        matched = self.space.match(token_ids)
        assert len(matched) * 2 < len(token_ids)
        for index, block_id in enumerate(matched):
            assert self.content[block_id] == tuple(token_ids[: 2 * index + 2]), "a hit on other tokens"
        wanted = -(-len(token_ids) // 2) - len(matched)
        can = self.space.can_allocate(wanted)
        assert can == (wanted <= self.space.num_free)
        if not can:
            before = self.space.num_free
            with pytest.raises(OutOfBlocks):
                self.space.allocate(wanted)
            assert self.space.num_free == before
            self.space.free(matched)
            return
        fresh = self.space.allocate(wanted)
        assert len(set(fresh)) == wanted
        in_use = {block_id for _, blocks in self.holders for block_id in blocks}
        assert not in_use & set(fresh) and not set(matched) & set(fresh)
        blocks = matched + fresh
        for index in range(len(matched), len(blocks)):
            self.content[blocks[index]] = tuple(token_ids[: 2 * index + 2])
        self.holders.append((token_ids, blocks))

    @precondition(lambda self: self.holders)
    @rule(data=st.data(), computed=st.integers(0, 9))
    def remember(self, data: st.DataObject, computed: int) -> None:
        token_ids, blocks = data.draw(st.sampled_from(self.holders))
        self.space.remember(token_ids[:computed], blocks)

    @precondition(lambda self: self.holders)
    @rule(data=st.data(), backwards=st.booleans())
    def release(self, data: st.DataObject, backwards: bool) -> None:
        index = data.draw(st.integers(0, len(self.holders) - 1))
        _, blocks = self.holders.pop(index)
        self.space.free(reversed(blocks) if backwards else blocks)

    @rule()
    def forget(self) -> None:
        self.space.forget()

    @precondition(lambda self: self.space.num_free > 0)
    @rule()
    def squeeze(self) -> None:
        """Exactly num_free blocks can be had at once."""
        blocks = self.space.allocate(self.space.num_free)
        assert not self.space.can_allocate(1)
        self.space.free(blocks)

    @invariant()
    def adds_up(self) -> None:
        if hasattr(self, "space"):
            self.space.check_integrity()
            in_use = {block_id for _, blocks in self.holders for block_id in blocks}
            assert self.space.num_free + self.space.num_used == 8
            if self.cached:  # a cached parent of a block in use counts as used
                assert len(in_use) <= self.space.num_used
            else:
                assert len(in_use) == self.space.num_used

    def teardown(self) -> None:
        if hasattr(self, "space"):
            for _, blocks in self.holders:
                self.space.free(blocks)
            assert self.space.num_free == 8
            self.space.check_integrity()


TestSpaceMachine = SpaceMachine.TestCase
TestSpaceMachine.settings = settings(
    max_examples=80, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
