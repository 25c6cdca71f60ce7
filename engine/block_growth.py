"""How a pool gets its memory: some at the start, more in steps, ahead of its use, when sequences need it.

A block is ready once its memory is reserved and mapped. Knows how many blocks are, and asks for more; what memory is,
the two functions that it is given know.
"""

import threading
from collections.abc import Callable

from errors import DeviceError
from settings.kv import KVSettings
from telemetry import get_logger

log = get_logger()

STEP_BYTES = 16 << 20  # 13 ms of a core


class BlockGrowth:
    """Blocks 0 to `num_ready` are ready, and there may be `num_blocks`: fewer as soon as memory cannot be had."""

    def __init__(
        self,
        num_ready: int,
        num_blocks: int,
        step_blocks: int,
        cache_blocks: int,
        reserve: Callable[[int, int], None],
        room: Callable[[], int],
    ) -> None:
        """`cache_blocks`: so many are made ready rather than that a cached block is given up for another. `reserve`
        makes blocks first..stop ready or raises DeviceError; `room` says how many could be made ready now."""
        self.num_ready, self.num_blocks = num_ready, num_blocks
        self.step_blocks, self.cache_blocks = step_blocks, cache_blocks
        self._reserve, self._room = reserve, room
        self._growing = threading.Lock()
        self._ahead: threading.Thread | None = None

    @property
    def num_left(self) -> int:
        """Blocks that can be made ready."""
        left = self.num_blocks - self.num_ready
        return min(left, self._room()) if left > 0 else 0

    def reach(self, num_ready: int) -> None:
        """Have so many ready, if they can be had, before this returns."""
        with self._growing:
            while self.num_ready < min(num_ready, self.num_blocks):
                stop = min(self.num_ready + self.step_blocks, self.num_blocks)
                try:
                    self._reserve(self.num_ready, stop)
                except DeviceError as error:
                    log.warning("kv_pool_stays_small", num_blocks=self.num_ready, reason=str(error))
                    self.num_blocks = self.num_ready
                    return
                self.num_ready = stop

    def begin(self) -> None:
        """Make the next step ready on a thread of its own, unless one is at it."""
        if self.num_ready < self.num_blocks and (self._ahead is None or not self._ahead.is_alive()):
            self._ahead = threading.Thread(
                target=self.reach, args=(self.num_ready + 1,), name="pool growth", daemon=True
            )
            self._ahead.start()


def first_blocks(settings: KVSettings, block_bytes: int, num_blocks: int) -> int:
    """How many blocks a pool in host memory has from the start."""
    return min(num_blocks, max(1, settings.first_bytes // block_bytes))


def growth_of(
    settings: KVSettings,
    block_bytes: int,
    num_blocks: int,
    reserve: Callable[[int, int], None],
    room: Callable[[], int],
) -> BlockGrowth | None:
    """Of a pool that was made with `first_blocks`; None where these are all."""
    num_ready = first_blocks(settings, block_bytes, num_blocks)
    if num_ready == num_blocks:
        return None
    step_blocks = max(1, STEP_BYTES // block_bytes)
    return BlockGrowth(num_ready, num_blocks, step_blocks, settings.cache_bytes // block_bytes, reserve, room)
