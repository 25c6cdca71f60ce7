"""Tasks that outlive the connection that started them, but not the process.

Knows asyncio only.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

from api.cancellation import end_tasks


class Background:
    """One per API process."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` beside everything else. It must not raise."""
        task = asyncio.create_task(work)
        self._tasks.add(task)  # the loop holds tasks by weak references alone
        task.add_done_callback(self._tasks.discard)

    async def end(self) -> None:
        """Cancel what still runs and wait until it has ended."""
        await end_tasks(self._tasks)
