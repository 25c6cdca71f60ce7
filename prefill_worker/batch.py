"""The prompts that a prefill worker has claimed: those it computes, those that wait, and the blocks they hold.

Knows blocks and sequences; knows no Redis, no model and no transfer.
"""

import asyncio
from collections import deque

from engine.block_space import BlockSpace
from messages.request import Priority
from prefill_worker.running import Running
from prefill_worker.scheduler import open_classes


class Batch:
    """One per worker."""

    def __init__(self, space: BlockSpace) -> None:
        self.space = space
        self.waiting: deque[Running] = deque()  # claimed, no blocks yet; the most urgent first
        self.running: list[Running] = []  # oldest first
        self.blocks_freed = asyncio.Event()

    @property
    def claimed(self) -> tuple[Running, ...]:
        """Everybody, with blocks or without."""
        return (*self.running, *self.waiting)

    def sort_waiting(self) -> None:
        """The most urgent first, of these who came first."""
        self.waiting = deque(sorted(self.waiting, key=lambda one: one.claim.priority.rank))

    def open_classes(self, token_budget: int) -> list[Priority]:
        """The classes of which more is taken now."""
        claimed = [(one.claim.priority, one.remaining_tokens) for one in self.claimed]
        waiting = {one.claim.priority for one in self.waiting}
        return open_classes(claimed, waiting, token_budget)

    def free(self, one: Running) -> None:
        """Give the sequence's blocks back."""
        self.space.free(one.sequence.block_table)
        one.sequence.block_table = []
        self.blocks_freed.set()

    def drop(self, one: Running) -> None:
        """Its blocks are given back, and it is computed no more."""
        self.free(one)
        (self.running if one in self.running else self.waiting).remove(one)

    async def wait_for_blocks(self, timeout_s: float) -> bool:
        """Until a block was freed; False after `timeout_s`."""
        self.blocks_freed.clear()
        try:
            await asyncio.wait_for(self.blocks_freed.wait(), timeout_s)
        except TimeoutError:
            return False
        return True
