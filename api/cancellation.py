"""Ending tasks for certain.

Knows asyncio and one trap: on Python 3.11 `asyncio.wait_for` can lose a cancellation that arrives in the very moment in
which its work is done, and redis-py sends every command under it. So a cancellation is repeated until it is obeyed.
"""

import asyncio
from collections.abc import Iterable
from typing import Any

from telemetry import get_logger

log = get_logger()

PATIENCE_S = 0.3  # how long a task may take to clean up before it is cancelled again
MAX_TRIES = 5


async def end_tasks(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel `tasks` and wait until they have ended; their results are dropped."""
    pending = set(tasks)
    for _ in range(MAX_TRIES):
        pending = {task for task in pending if not task.done()}
        if not pending:
            return
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=PATIENCE_S)
    if any(not task.done() for task in pending):
        log.error("tasks_do_not_end", tasks=[task.get_name() for task in pending])
