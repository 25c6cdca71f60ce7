"""Who is in the batch of a decode worker and who joins it, with the blocks they hold.

What the taking-in and the steps share, and how each tells the other that something changed. Knows blocks and
sequences; knows no Redis, no model and no transfer.
"""

import asyncio

from decode_worker.running import Running
from engine.block_space import BlockSpace
from engine.sequence import Sequence

IDLE_WAIT_S = 0.2  # how long an idle loop waits before it shows that it is alive


class Batch:
    """One per worker."""

    def __init__(self, space: BlockSpace) -> None:
        self.space = space
        self.running: list[Running] = []  # oldest first
        self.joining: list[Running] = []  # pulled, in from the next step
        self.prefilling: list[Running] = []  # whose prompts are computed here, oldest first
        self.cancelled: set[tuple[str, int]] = set()  # (request_id, choice)
        self.work_came = asyncio.Event()
        self.room_came = asyncio.Event()

    @property
    def here(self) -> tuple[Running, ...]:
        """Everybody who holds blocks."""
        return (*self.running, *self.joining, *self.prefilling)

    @property
    def num_here(self) -> int:
        """How many those are."""
        return len(self.running) + len(self.joining) + len(self.prefilling)

    def join(self, one: Running) -> None:
        """It is in from the next step."""
        self.joining.append(one)
        self.work_came.set()

    def take_joined(self) -> None:
        """Who has joined is in."""
        self.running += self.joining
        self.joining = []

    def leave(self, one: Running) -> None:
        """Out of the batch, and its blocks are given back."""
        self.running = [other for other in self.running if other is not one]
        self.prefilling = [other for other in self.prefilling if other is not one]
        self.free(one.sequence)

    def free(self, sequence: Sequence) -> None:
        """Give the sequence's blocks back."""
        self.free_blocks(sequence.block_table)
        sequence.block_table = []

    def free_blocks(self, block_ids: list[int]) -> None:
        """Give blocks back that no sequence has."""
        self.space.free(block_ids)
        if block_ids:
            self.room_came.set()

    def cancel(self, key: tuple[str, int]) -> None:
        """A sequence was ended from outside, which may be here, on its way, or somebody else's."""
        self.cancelled.add(key)
        self.work_came.set()
        self.room_came.set()


async def wait(event: asyncio.Event) -> None:
    """Until `event`, or long enough to show that the loop is alive."""
    event.clear()
    try:
        await asyncio.wait_for(event.wait(), IDLE_WAIT_S)
    except TimeoutError:
        pass
