"""Redis connections on which a cancelled command is really cancelled. This file knows no key and no command.

redis-py sends through `asyncio.wait_for`, and before Python 3.12 that function forgets a cancellation that arrives just
as the bytes are out (cpython#86296). The task would then sit in its blocking read until the read ends by itself, and a
loop around it would go on for ever.
"""

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING

from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection

if TYPE_CHECKING:
    _Base = AbstractConnection
else:
    _Base = object


class _PromptCancel(_Base):
    async def send_packed_command(self, command: bytes | str | Iterable[bytes], check_health: bool = True) -> None:
        task = asyncio.current_task()
        num_cancels = task.cancelling() if task else 0
        await super().send_packed_command(command, check_health)
        # Only what came meanwhile: a task that was cancelled before may well talk to Redis while it cleans up.
        if task is not None and task.cancelling() > num_cancels:
            await self.disconnect(nowait=True)  # an answer is on its way that nobody will read
            raise asyncio.CancelledError


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
