"""Work that is dropped when the client leaves.

Knows the ASGI receive channel; knows nothing of requests. Only works beneath pure ASGI middleware: Starlette's
BaseHTTPMiddleware hides the disconnect.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from api.cancellation import end_tasks

ResultT = TypeVar("ResultT")


class ClientLeft(Exception):
    """The client closed its connection; nobody reads an answer."""


async def while_connected(receive: Receive, work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """The result of `work`; its body must have been read. Cancels it and raises ClientLeft when the client leaves."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientLeft
    finally:
        # Wait for the work's own clean-up, so that it is done before the server closes what it needs.
        await end_tasks((working, leaving))


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
