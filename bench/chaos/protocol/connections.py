"""redis-py's connections over the links of a simulated cluster: everything above them is redis-py's own.

Knows links; knows no command.
"""

import asyncio
import math
from collections.abc import Iterable
from typing import Any

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import Connection
from redis.backoff import NoBackoff
from redis.client import Redis as SyncRedis
from redis.connection import Connection as SyncConnection
from redis.connection import ConnectionPool as SyncConnectionPool
from redis.exceptions import ConnectionError, RedisError
from redis.retry import Retry

from bench.chaos.protocol.fiber import pause
from bench.chaos.protocol.redis_server import Command, Link
from broker.retry import endless_retry


class SimulatedConnection(Connection):
    """`process.open_link()` connects."""

    def __init__(self, *, process: Any, **options: Any) -> None:
        super().__init__(**options)
        self._process = process
        self._link: Link | None = None

    @property
    def is_connected(self) -> bool:
        return self._link is not None and self._link.is_open

    async def _connect(self) -> None:
        self._link = self._process.open_link()

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        pass

    async def disconnect(self, nowait: bool = False, *args: Any, **options: Any) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.reader = None
            link.drop(ConnectionError("closed by us"))

    def pack_command(self, *args: Any) -> Any:
        return [_packed(self.encoder, args)]

    def pack_commands(self, commands: Iterable[Iterable[Any]]) -> Any:
        return [_packed(self.encoder, command) for command in commands]

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        self._process.check_alive()
        if not self.is_connected:
            await self.disconnect()
            await self.connect()  # type: ignore[no-untyped-call]
        assert self._link is not None
        self._link.send(command)

    async def can_read(self) -> bool:
        return False

    async def read_response(self, disable_decoding: bool = False, timeout: float | None = None, **options: Any) -> Any:  # noqa: ASYNC109 - redis-py's
        self._process.check_alive()
        link = self._link
        if link is None or not link.is_open:
            await self.disconnect()
            raise ConnectionError("the connection was lost")
        waiting = asyncio.get_running_loop().create_future()

        def take(answer: Any) -> None:
            waiting.set_result(answer)
            self._process.wake()

        link.reader = take
        try:
            if timeout is None or timeout == math.inf:
                answer = await waiting
            else:
                try:
                    async with asyncio.timeout(timeout):
                        answer = await waiting
                except TimeoutError:
                    return None
                finally:
                    if link.reader is take:
                        link.reader = None
        except BaseException:
            await self.disconnect()
            raise
        if isinstance(answer, ConnectionError):
            await self.disconnect()
            raise answer
        if isinstance(answer, RedisError):
            raise answer
        return answer


class BlockingConnection(SyncConnection):
    """The same for a thread of the process, which is a fiber."""

    def __init__(self, *, process: Any, **options: Any) -> None:
        super().__init__(**options)  # type: ignore[no-untyped-call]
        self._process = process
        self._link: Link | None = None

    @property
    def is_connected(self) -> bool:
        return self._link is not None and self._link.is_open

    def connect(self) -> None:
        if not self.is_connected:
            self._link = self._process.open_link()

    def disconnect(self, *args: Any, **options: Any) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.reader = None
            link.drop(ConnectionError("closed by us"))

    def pack_command(self, *args: Any) -> Any:
        return [_packed(self.encoder, args)]

    def pack_commands(self, commands: Any) -> Any:
        return [_packed(self.encoder, command) for command in commands]

    def send_command(self, *args: Any, **options: Any) -> None:
        self.send_packed_command(self.pack_command(*args))

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        self.connect()
        assert self._link is not None
        self._link.send(command)

    def can_read(self, timeout: float = 0) -> bool:
        return False

    def read_response(self, *args: Any, **options: Any) -> Any:
        if not self.is_connected:
            raise ConnectionError("the connection was lost")
        answer = pause(self._link)
        if isinstance(answer, ConnectionError):
            self.disconnect()
        if isinstance(answer, RedisError):
            raise answer
        return answer


class LightPool(ConnectionPool):
    """Without the measurements and checks that redis-py makes around every command."""

    async def get_connection(self, command_name: Any = None, *keys: Any, **options: Any) -> Any:
        connection: Any = self.get_available_connection()  # type: ignore[no-untyped-call]
        if not connection.is_connected:
            await connection.connect()
        return connection

    async def release(self, connection: Any) -> None:
        self._in_use_connections.remove(connection)
        self._available_connections.append(connection)


def open_async(process: Any) -> Redis:
    """A client of the process, as patient as a worker's."""
    retry = endless_retry()
    return Redis(
        connection_pool=LightPool(
            connection_class=SimulatedConnection, process=process, retry=retry, protocol=2, decode_responses=False
        )
    )


def open_blocking(process: Any) -> SyncRedis:
    """A client of a thread of the process, without retries."""
    return SyncRedis(
        connection_pool=SyncConnectionPool(
            connection_class=BlockingConnection,
            process=process,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            decode_responses=False,
        )
    )


def _packed(encoder: Any, words: Iterable[Any]) -> Command:
    first, *rest = words
    return [*(first.encode() if isinstance(first, str) else first).split(), *(encoder.encode(word) for word in rest)]
