"""A worker's inbox: the Releases of the KV it offered. Read by position, so a lost answer loses no message.

It is bounded and it expires; a release that gets lost with it is found by the owner's own check of its open offers.
"""

from typing import Any

from redis.asyncio import Redis

from broker.job_queue import MAX_BLOCK_MS
from broker.keys import Keys
from errors import WireError
from messages.kv_transfer import Release
from messages.wire import decode, encode
from telemetry import get_logger

log = get_logger()

_EXPIRE_S = 60  # after the last send
_MAX_ENTRIES = 8192
_READ_COUNT = 512


class Inbox:
    """One worker's inbox; anyone may send, the worker alone receives, through one object."""

    def __init__(self, client: Redis, blocking_client: Redis, keys: Keys, worker_id: str) -> None:
        self._redis = client
        self._blocking_redis = blocking_client
        self._key = keys.inbox(worker_id)
        self._position = b"0-0"

    async def send(self, release: Release) -> None:
        """Put one message; sent twice when an answer is lost, which the receiver must bear."""
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.xadd(self._key, {"release": encode(release)}, maxlen=_MAX_ENTRIES, approximate=True)
        pipeline.expire(self._key, _EXPIRE_S)
        await pipeline.execute()

    async def receive(self, block_ms: int = 0) -> list[Release]:
        """What came since the last call, oldest first; waits up to `block_ms` for it (0: does not wait)."""
        block = min(block_ms, MAX_BLOCK_MS) if block_ms > 0 else None  # to Redis, 0 would mean for ever
        client = self._redis if block is None else self._blocking_redis
        streams: Any = await client.xread({self._key: self._position}, count=_READ_COUNT, block=block)
        releases = []
        for _, rows in streams or []:
            for entry_id, fields in rows:
                self._position = entry_id
                try:
                    releases.append(decode(fields.get(b"release", b""), Release))
                except WireError as error:  # the owner's own check of its offers finds what it was about
                    log.warning("release_undecodable", entry_id=entry_id.decode(), error=str(error))
        return releases
