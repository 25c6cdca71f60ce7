"""A pool of Redis connections in which a burst of commands waits for its turn.

redis-py's usual pool refuses the 101st command at a time, and so most of a thousand clients that come at once; its
blocking one can lose a connection when a command is cancelled while others wait. This file knows no command.
"""

import asyncio
from typing import Any

from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.exceptions import ConnectionError

MAX_CONNECTIONS = 64


class WaitingPool(ConnectionPool):
    """At most MAX_CONNECTIONS; who finds all of them in use waits for `wait_s`."""

    def __init__(self, *, wait_s: float, **options: Any) -> None:
        super().__init__(max_connections=MAX_CONNECTIONS, **options)
        self._places = asyncio.Semaphore(MAX_CONNECTIONS)
        self._wait_s = wait_s

    async def get_connection(self, *args: Any, **options: Any) -> AbstractConnection:
        """A connected one. Raises ConnectionError when Redis is away, or the wait too long."""
        try:
            async with asyncio.timeout(self._wait_s):
                await self._places.acquire()
        except TimeoutError:
            raise ConnectionError(f"no connection to Redis was free for {self._wait_s:g} s") from None
        # Whoever fails from here on gives its connection back, and so its place.
        connection: AbstractConnection = await super().get_connection(*args, **options)  # type: ignore[no-untyped-call]
        return connection

    async def release(self, connection: AbstractConnection) -> None:
        """Give it back; the next one in the queue has it."""
        self._places.release()
        await super().release(connection)
