"""Several asynchronous sources read as one, each item as soon as it comes.

Knows asyncio alone. The sources are read on tasks of their own, which end with the reader.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import TypeVar

from api.cancellation import end_tasks

ItemT = TypeVar("ItemT")


async def merged(sources: Sequence[AsyncIterator[ItemT]]) -> AsyncGenerator[tuple[int, ItemT], None]:
    """(number of the source, item), until all sources have ended. Raises what the first of them raises that fails."""
    arrived: asyncio.Queue[tuple[int, ItemT] | asyncio.Task[None]] = asyncio.Queue()

    async def read(number: int, source: AsyncIterator[ItemT]) -> None:
        async for item in source:
            arrived.put_nowait((number, item))

    tasks = [asyncio.create_task(read(number, source)) for number, source in enumerate(sources)]
    for task in tasks:
        task.add_done_callback(arrived.put_nowait)
    num_left = len(tasks)
    try:
        while num_left:
            came = await arrived.get()
            if isinstance(came, asyncio.Task):
                came.result()
                num_left -= 1
            else:
                yield came
    finally:
        await end_tasks(tasks)
