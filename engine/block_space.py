"""A worker's KV blocks: the allocator and, where there is one, the prefix cache that gives way to it.

Both workers take, share and return blocks here and nowhere else. Knows no tensor and no sequence.
"""

from collections.abc import Iterable, Sequence

from engine.block_allocator import BlockAllocator, OutOfBlocks
from engine.prefix_cache import PrefixCache


class BlockSpace:
    """`num_blocks` blocks of `block_size` tokens. Blocks only the cache holds count as free."""

    def __init__(self, num_blocks: int, block_size: int, prefix_cache: bool) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._allocator = BlockAllocator(num_blocks)
        self._cache = PrefixCache(self._allocator, block_size) if prefix_cache else None

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated, cached ones that would be evicted for it included."""
        return self._allocator.num_free + (self._cache.num_evictable if self._cache else 0)

    @property
    def num_cached(self) -> int:
        """Blocks that the prefix cache has."""
        return self._cache.num_blocks if self._cache else 0

    @property
    def num_used(self) -> int:
        """Blocks that someone holds."""
        return self.num_blocks - self.num_free

    def can_allocate(self, num_blocks: int) -> bool:
        """Whether `allocate` would succeed."""
        return num_blocks <= self.num_free

    def match(self, token_ids: Sequence[int]) -> list[int]:
        """Blocks with the KV of a prefix of `token_ids`, held for the caller until it frees them.

        Never all tokens: the last one must be computed for its logits.
        """
        return self._cache.match(token_ids, len(token_ids) - 1) if self._cache and token_ids else []

    def allocate(self, num_blocks: int) -> list[int]:
        """That many blocks, evicting cached ones as needed. Raises OutOfBlocks, and then takes and evicts none."""
        if not self.can_allocate(num_blocks):
            raise OutOfBlocks(f"{num_blocks} blocks wanted, {self.num_free} of {self.num_blocks} are free")
        if self._cache and num_blocks > self._allocator.num_free:
            self._cache.evict(num_blocks - self._allocator.num_free)
        return self._allocator.allocate(num_blocks)

    def free(self, block_ids: Iterable[int]) -> None:
        """Gives blocks back. Raises ValueError for one that is not held."""
        self._allocator.free(block_ids)

    def remember(self, token_ids: Sequence[int], block_ids: Sequence[int]) -> None:
        """Offers the blocks with the computed KV of `token_ids` for later matches; the caller still frees its own."""
        if self._cache:
            self._cache.insert(token_ids, block_ids)

    def forget(self) -> None:
        """Empties the prefix cache."""
        if self._cache:
            self._cache.clear()

    def check_integrity(self) -> None:
        """Free and used blocks are all blocks, and the cache agrees. Raises AssertionError."""
        self._allocator.check_integrity()
        if self._cache:
            self._cache.check_integrity()
        assert self.num_free + self.num_used == self.num_blocks
