"""One sequence's KV on its way into blocks of ours, which are given back unless somebody keeps them.

It may be under way before we know whether the sequence is ours: nothing but its blocks depends on it. Knows blocks;
does not know where KV comes from, nor who is told.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor

from decode_worker.batch import Batch
from errors import KVTransferFailed


class Pull:
    """Under way from the beginning on."""

    def __init__(
        self, batch: Batch, num_blocks: int, thread: Executor, copy_into: Callable[[list[int]], object]
    ) -> None:
        """`copy_into`: fills the blocks; called on `thread`. Raises OutOfBlocks."""
        self._batch = batch
        self._block_ids = batch.space.allocate(num_blocks)
        self._began_s = time.perf_counter()
        self._copying = asyncio.get_running_loop().run_in_executor(thread, self._copy, copy_into)

    def _copy(self, copy_into: Callable[[list[int]], object]) -> float:
        copy_into(self._block_ids)
        return time.perf_counter() - self._began_s

    async def done(self) -> float:
        """The seconds that it took. Raises KVTransferFailed."""
        return await self._copying

    @property
    def lasts_s(self) -> float:
        """For how long it has been copying; 0 once it is done."""
        return 0.0 if self._copying.done() else time.perf_counter() - self._began_s

    def keep(self) -> list[int]:
        """The filled blocks, which are the caller's to free from now on."""
        block_ids, self._block_ids = self._block_ids, []
        return block_ids

    async def end(self) -> None:
        """Once nothing is written into them any more: give back what nobody kept."""
        try:
            await self._copying
        except KVTransferFailed:
            pass  # who wanted it has heard of it
        self._batch.free_blocks(self.keep())
