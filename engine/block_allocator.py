"""Which KV blocks are free and how many holders each of the others has.

Block ids are 0..num_blocks-1. Knows no tensor, no sequence and no cache; a holder that keeps blocks in reserve (the
prefix cache) can watch whether anyone else still holds them.
"""

from collections.abc import Callable, Iterable

from errors import PdqError


class OutOfBlocks(PdqError):
    """Fewer blocks are free than were asked for."""


class BlockAllocator:
    """Hands out blocks and counts their holders; a block is free again when its last holder gives it back."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))  # a stack: a block just freed is the next one used
        self._ref_counts = [0] * num_blocks
        self._watcher: Callable[[int], None] | None = None

    @property
    def num_free(self) -> int:
        """Blocks nobody holds."""
        return len(self._free)

    def ref_count(self, block_id: int) -> int:
        """Number of holders."""
        return self._ref_counts[block_id]

    def extend(self, num_blocks: int) -> None:
        """From here on there are so many, not fewer than before; the new ones are used last."""
        assert num_blocks >= self.num_blocks
        self._free[:0] = range(num_blocks - 1, self.num_blocks - 1, -1)
        self._ref_counts += [0] * (num_blocks - self.num_blocks)
        self.num_blocks = num_blocks

    def watch(self, watcher: Callable[[int], None]) -> None:
        """Calls `watcher(block_id)` when a block goes from one holder to two or from two to one. One watcher only."""
        assert self._watcher is None, "the allocator is watched already"
        self._watcher = watcher

    def allocate(self, num_blocks: int) -> list[int]:
        """That many free blocks, each with one holder. Raises OutOfBlocks, and then takes none."""
        if num_blocks > len(self._free):
            raise OutOfBlocks(f"{num_blocks} blocks wanted, {len(self._free)} of {self.num_blocks} are free")
        block_ids = [self._free.pop() for _ in range(num_blocks)]
        for block_id in block_ids:
            self._ref_counts[block_id] = 1
        return block_ids

    def share(self, block_ids: Iterable[int]) -> None:
        """One more holder each. Raises ValueError for a free block."""
        for block_id in block_ids:
            if self._ref_counts[block_id] == 0:
                raise ValueError(f"block {block_id} is free and cannot be shared")
            self._ref_counts[block_id] += 1
            if self._ref_counts[block_id] == 2 and self._watcher is not None:
                self._watcher(block_id)

    def free(self, block_ids: Iterable[int]) -> None:
        """One holder less each. Raises ValueError for a free block."""
        for block_id in block_ids:
            if self._ref_counts[block_id] == 0:
                raise ValueError(f"block {block_id} is freed twice")
            self._ref_counts[block_id] -= 1
            if self._ref_counts[block_id] == 0:
                self._free.append(block_id)
            elif self._ref_counts[block_id] == 1 and self._watcher is not None:
                self._watcher(block_id)

    def check_integrity(self) -> None:
        """Free and used blocks are all blocks, and no block is both. Raises AssertionError."""
        free = set(self._free)
        assert len(free) == len(self._free), "a block is free twice"
        used = {block_id for block_id, count in enumerate(self._ref_counts) if count > 0}
        assert min(self._ref_counts, default=0) >= 0, "a block has fewer than no holders"
        assert not free & used, f"blocks {sorted(free & used)} are free and used"
        assert len(free) + len(used) == self.num_blocks, "blocks are lost"
        assert free | used == set(range(self.num_blocks)), "unknown blocks"
