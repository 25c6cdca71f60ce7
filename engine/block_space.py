"""A worker's KV blocks: the allocator and, where there is one, the prefix cache that gives way to it.

Of a pool that grows, the allocator has the blocks that are ready. Cached blocks are given up before it grows beyond
what the cache may take, so that prefixes of an hour ago do not hold memory that no sequence needs.

Both workers take, share and return blocks here and nowhere else. Knows no tensor and no sequence.
"""

from collections.abc import Iterable, Sequence

from engine.block_allocator import BlockAllocator, OutOfBlocks
from engine.block_growth import BlockGrowth
from engine.prefix_cache import PrefixCache
from messages import ImageRef


class BlockSpace:
    """`num_blocks` blocks of `block_size` tokens. Blocks only the cache holds count as free."""

    def __init__(self, num_blocks: int, block_size: int, prefix_cache: bool, growth: BlockGrowth | None = None) -> None:
        """`growth`: of a pool of which not all blocks are ready."""
        self._num_blocks = num_blocks
        self.block_size = block_size
        self._growth = growth
        self._allocator = BlockAllocator(num_blocks if growth is None else growth.num_ready)
        self._cache = PrefixCache(self._allocator, block_size) if prefix_cache else None

    @property
    def num_blocks(self) -> int:
        """Blocks that there are, or can be."""
        return self._num_blocks if self._growth is None else self._growth.num_blocks

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated; those that would be evicted or made ready for it included."""
        self._take_ready()
        return self._num_spare + (0 if self._growth is None else self._growth.num_left)

    @property
    def _num_spare(self) -> int:
        """Ready blocks that can be allocated."""
        return self._allocator.num_free + (self._cache.num_evictable if self._cache else 0)

    @property
    def num_cached(self) -> int:
        """Blocks that the prefix cache has."""
        return self._cache.num_blocks if self._cache else 0

    @property
    def num_used(self) -> int:
        """Blocks that someone holds."""
        return self._allocator.num_blocks - self._num_spare

    def can_allocate(self, num_blocks: int) -> bool:
        """Whether `allocate` would succeed."""
        return num_blocks <= self.num_free

    def match(self, token_ids: Sequence[int], images: Sequence[ImageRef] = ()) -> list[int]:
        """Blocks with the KV of a prefix of `token_ids`, held for the caller until it frees them. `images`: which of
        the tokens stand for one.

        Never all tokens: the last one must be computed for its logits.
        """
        return self._cache.match(token_ids, len(token_ids) - 1, images) if self._cache and token_ids else []

    def allocate(self, num_blocks: int) -> list[int]:
        """That many blocks, evicting cached ones as needed. Raises OutOfBlocks, and then takes and evicts none."""
        if not self.can_allocate(num_blocks):
            raise OutOfBlocks(f"{num_blocks} blocks wanted, {self.num_free} of {self.num_blocks} are free")
        self._grow_for(num_blocks)
        if self._cache and num_blocks > self._allocator.num_free:
            self._cache.evict(num_blocks - self._allocator.num_free)
        return self._allocator.allocate(num_blocks)

    def _grow_for(self, num_blocks: int) -> None:
        """See to it that so many are ready, and that after these some are left."""
        growth = self._growth
        if growth is None:
            return
        num_here = self._allocator.num_free
        if growth.num_ready >= growth.cache_blocks:
            num_here = self._num_spare
        if num_here < num_blocks:
            growth.reach(growth.num_ready + num_blocks - num_here)
            self._take_ready()
        if num_here - num_blocks < growth.step_blocks:
            growth.begin()

    def _take_ready(self) -> None:
        if self._growth is not None and self._growth.num_ready > self._allocator.num_blocks:
            self._allocator.extend(self._growth.num_ready)

    def free(self, block_ids: Iterable[int]) -> None:
        """Gives blocks back. Raises ValueError for one that is not held."""
        self._allocator.free(block_ids)

    def remember(self, token_ids: Sequence[int], block_ids: Sequence[int], images: Sequence[ImageRef] = ()) -> None:
        """Offers the blocks with the computed KV of `token_ids` for later matches; the caller still frees its own."""
        if self._cache:
            self._cache.insert(token_ids, block_ids, images)

    def forget(self) -> None:
        """Empties the prefix cache."""
        if self._cache:
            self._cache.clear()

    def check_integrity(self) -> None:
        """Free and used blocks are all blocks, and the cache agrees. Raises AssertionError."""
        self._allocator.check_integrity()
        if self._cache:
            self._cache.check_integrity()
        assert self._num_spare + self.num_used == self._allocator.num_blocks
