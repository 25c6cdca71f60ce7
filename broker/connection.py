"""Redis connections on which a cancelled command is really cancelled, and those that go to whoever is master.

This file knows no key and no command of ours.

redis-py sends through `asyncio.wait_for`, and before Python 3.12 that function forgets a cancellation that arrives just
as the bytes are out (cpython#86296). The task would then sit in its blocking read until the read ends by itself, and a
loop around it would go on for ever. What can be sent at once goes without it.
"""

import asyncio
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import hiredis
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.connection import Connection as SyncConnection
from redis.exceptions import (
    AskError,
    ClusterDownError,
    ConnectionError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)

from broker.master import Locate

_LITTLE_BYTES = 1 << 16  # asyncio's high-water mark, above which a write waits

if TYPE_CHECKING:
    _Base = AbstractConnection
else:
    _Base = object


class _PromptCancel(_Base):
    """Also quicker than redis-py where a command is packed and sent."""

    async def send_packed_command(self, command: bytes | str | Iterable[bytes], check_health: bool = True) -> None:
        writer = self._writer
        if writer is not None and not writer.transport.is_closing() and isinstance(command, list):
            # There is nothing to wait for as long as little is underway, and hence nothing that needs redis-py's time
            # limit, which costs a task per command. What becomes of it, the read of the answer finds out.
            writer.writelines(command)
            if writer.transport.get_write_buffer_size() <= _LITTLE_BYTES:
                return
            command = b""
        task = asyncio.current_task()
        num_cancels = task.cancelling() if task else 0
        await super().send_packed_command(command, check_health)
        # Only what came meanwhile: a task that was cancelled before may well talk to Redis while it cleans up.
        if task is not None and task.cancelling() > num_cancels:
            await self.disconnect(nowait=True)  # an answer is on its way that nobody will read
            raise asyncio.CancelledError

    def pack_command(self, *args: Any) -> list[bytes]:
        # redis-py's synchronous connections do so too; its asynchronous ones join in Python, again and again.
        name, *more = args
        try:
            return [hiredis.pack_command((*name.split(), *more) if " " in name else args)]
        except TypeError:  # a kind of argument that only redis-py knows, or a name in bytes
            return super().pack_command(*args)


class PromptConnection(_PromptCancel, Connection):
    """redis://"""


class PromptSSLConnection(_PromptCancel, SSLConnection):
    """rediss://"""


class PromptUnixConnection(_PromptCancel, UnixDomainSocketConnection):
    """unix://"""


PROMPT_CLASSES: dict[type[AbstractConnection], type[AbstractConnection]] = {
    Connection: PromptConnection,
    SSLConnection: PromptSSLConnection,
    UnixDomainSocketConnection: PromptUnixConnection,
}


# What a node answers that is not, or not now, the master of our keys.
_NOT_MASTER = (ReadOnlyError, AskError, TryAgainError, ClusterDownError)


class MasterConnection(PromptConnection):
    """redis+sentinel:// and redis+cluster://: goes to the master of the moment, and leaves it when it is none."""

    def __init__(self, *, locate: Locate, **options: Any) -> None:
        super().__init__(**options)
        self._locate = locate

    async def _connect(self) -> None:
        self.host, self.port = await asyncio.to_thread(self._locate)
        await super()._connect()  # type: ignore[no-untyped-call]

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        await super().on_connect_check_health(check_health)
        # Who fell and rose again still takes itself for the master, or is its replica by now.
        await self.send_command("ROLE", check_health=False)
        require_master(await self.read_response())

    async def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*args, **options)
        except ResponseError as error:
            if is_not_master(error):
                await self.disconnect(nowait=True)
                raise ConnectionError(f"no longer the master: {error}") from None
            raise


class SyncMasterConnection(SyncConnection):
    """`MasterConnection` for threads."""

    def __init__(self, *, locate: Locate, **options: Any) -> None:
        super().__init__(**options)  # type: ignore[no-untyped-call]
        self._locate = locate

    def _connect(self) -> socket.socket:
        self.host, self.port = self._locate()
        connected: socket.socket = super()._connect()  # type: ignore[no-untyped-call]
        return connected

    def on_connect_check_health(self, check_health: bool = True) -> None:
        super().on_connect_check_health(check_health)
        self.send_command("ROLE", check_health=False)  # type: ignore[no-untyped-call]
        require_master(self.read_response())

    def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return super().read_response(*args, **options)
        except ResponseError as error:
            if is_not_master(error):
                self.disconnect()  # type: ignore[no-untyped-call]
                raise ConnectionError(f"no longer the master: {error}") from None
            raise


def is_not_master(error: ResponseError) -> bool:
    """Whether the answer means that another node has our keys, or will. A blocked read hears of it as UNBLOCKED."""
    return isinstance(error, _NOT_MASTER) or str(error).startswith("UNBLOCKED")


def require_master(role: Any) -> None:
    """Raises ConnectionError unless ROLE's answer is a master's."""
    if role[0] not in (b"master", "master"):
        raise ConnectionError("connected to a replica")
