"""Word that choices were ended from the API's side, so that workers drop them before their next append is refused.

Only a hint: a message that is missed costs a step, never a wrong token. Knows no worker.
"""

import asyncio
from collections.abc import AsyncGenerator

from redis.asyncio import Redis
from redis.exceptions import ConnectionError, TimeoutError

from broker.choice import parse_member
from broker.keys import Keys
from telemetry import get_logger

_RECONNECT_S = 0.2
_POLL_S = 5.0

log = get_logger()


class Cancels:
    """The channel on which `RequestLog.finish` speaks."""

    def __init__(self, blocking_client: Redis, keys: Keys) -> None:
        self._redis = blocking_client
        self._channel = keys.cancels()

    async def listen(self) -> AsyncGenerator[tuple[str, int], None]:
        """(request_id, choice) of every choice ended while listening. Never ends; survives Redis outages."""
        while True:
            try:
                async with self._redis.pubsub(ignore_subscribe_messages=True) as pubsub:
                    await pubsub.subscribe(self._channel)
                    while True:
                        message = await pubsub.get_message(timeout=_POLL_S)
                        if message is not None and (key := _key_of(message["data"])) is not None:
                            yield key
            except (ConnectionError, TimeoutError) as error:
                log.warning("cancels_interrupted", error=str(error))
                await asyncio.sleep(_RECONNECT_S)


def _key_of(data: bytes) -> tuple[str, int] | None:
    try:
        return parse_member(data)
    except ValueError:
        log.warning("cancel_undecodable", num_bytes=len(data))
        return None
