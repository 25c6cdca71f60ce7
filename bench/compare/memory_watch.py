"""The most memory that a process tree has had, looked at every now and then.

A look makes the kernel walk over every page of the tree, which holds up the server for milliseconds: so it is taken
while many requests run, when the figure is throughput, and at the end of each workload; not while stalls are measured.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bench.process_tree import TreeMemory, memory_of_tree

EVERY_S = 1.0


class MemoryWatch:
    """Keeps the highest; None until it was looked."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.most: TreeMemory | None = None

    async def look(self) -> None:
        """Once."""
        seen = await asyncio.to_thread(memory_of_tree, self._pid)
        if seen is not None and (self.most is None or seen.pss_bytes > self.most.pss_bytes):
            self.most = seen

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """While entered, looks by itself."""

        async def watch() -> None:
            while True:
                await self.look()
                await asyncio.sleep(EVERY_S)

        task = asyncio.create_task(watch())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
