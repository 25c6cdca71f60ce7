"""A job queue: a Redis stream and its consumer group, where taking an entry leases it.

An entry belongs to the worker that took it until it is acknowledged; if nothing renews it (broker/heartbeat.py) for
`lease_s`, anyone may reclaim it. So an entry can be delivered twice; what that may do is the fence's business
(broker/request_log.py). Jobs are put by the request log's scripts. This file knows no tokens.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from broker.choice import parse_member
from broker.keys import GROUP, Keys
from broker.scripts import load_script
from messages import DecodeJob, PrefillJob, Role, WireError, decode
from settings import QueueSettings
from telemetry import get_logger

JobT = TypeVar("JobT", PrefillJob, DecodeJob)

# A longer wait is cut short, so that the socket timeout of blocking connections stays above it.
MAX_BLOCK_MS = 10_000

log = get_logger()


@dataclass(frozen=True, slots=True)
class QueueEntry(Generic[JobT]):
    """A job as it was delivered to a worker."""

    queue: Role
    entry_id: bytes
    job: JobT
    deliveries: int  # 1: never before; a reclaim counts, a renewal does not


class JobQueue(Generic[JobT]):
    """The queue of one role. Every method raises redis errors when Redis stays away."""

    def __init__(
        self,
        client: Redis,
        blocking_client: Redis,
        keys: Keys,
        settings: QueueSettings,
        role: Role,
        job_type: type[JobT],
        refuse: Callable[[str, int, str], Awaitable[None]],
    ) -> None:
        """`refuse(request_id, choice, why)` ends a choice whose job cannot be read."""
        self._redis = client
        self._blocking_redis = blocking_client
        self._key = keys.queue(role)
        self._lease_ms = round(settings.lease_s * 1000)
        self._role = role
        self._job_type: type[JobT] = job_type
        self._refuse = refuse

    async def ensure(self) -> None:
        """Create the consumer group unless it exists. From entry 0 on: what waits already is to be delivered."""
        try:
            await self._redis.xgroup_create(self._key, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise

    async def take(self, worker_id: str, count: int, block_ms: int = 0) -> "list[QueueEntry[JobT]]":
        """At most `count` new entries; when there is none, wait up to `block_ms` (0: do not wait).

        A cancelled wait may leave entries delivered but unseen; they are reclaimed after `lease_s` like a dead
        worker's.
        """
        if count < 1:
            return []
        block = min(block_ms, MAX_BLOCK_MS) if block_ms > 0 else None  # to Redis, 0 would mean for ever
        client = self._redis if block is None else self._blocking_redis
        try:
            streams: Any = await client.xreadgroup(GROUP, worker_id, {self._key: ">"}, count=count, block=block)
        except ResponseError as error:
            await self._restore_group(error)
            streams = await client.xreadgroup(GROUP, worker_id, {self._key: ">"}, count=count, block=block)
        return await self._entries([(entry_id, 1, fields) for _, rows in streams or [] for entry_id, fields in rows])

    async def ack(self, entries: "Sequence[QueueEntry[JobT]]") -> None:
        """Remove entries whose work is done: their choice ended here, or `take` of the request log said None.

        A worker that was refused uses `RequestLog.ack_if_stale` instead.
        """
        await self._remove([entry.entry_id for entry in entries])

    async def reclaim(self, worker_id: str, count: int) -> "list[QueueEntry[JobT]]":
        """At most `count` entries that nobody renewed for `lease_s`, now this worker's. Forgets gone consumers."""
        try:
            rows = await load_script("reclaim").run(
                self._redis, [self._key], [GROUP, worker_id, self._lease_ms, count, 10 * self._lease_ms]
            )
        except ResponseError as error:
            await self._restore_group(error)
            return []
        return await self._entries(
            [
                (entry_id, deliveries, dict(zip(fields[::2], fields[1::2], strict=True)))
                for entry_id, deliveries, fields in rows
            ]
        )

    async def depth(self) -> int:
        """Entries waiting or being worked on."""
        length: int = await self._redis.xlen(self._key)
        return length

    async def _restore_group(self, error: ResponseError) -> None:
        # A Redis that lost its data also lost the group; UNBLOCKED is how a blocked read hears of it. Redis 6 puts
        # words of its own before an error that a script met.
        if "NOGROUP" not in str(error) and "UNBLOCKED" not in str(error):
            raise error
        log.info("queue_group_missing", queue=self._role.value)
        await self.ensure()

    async def _remove(self, entry_ids: Sequence[bytes]) -> None:
        if entry_ids:
            pipeline = self._redis.pipeline(transaction=True)
            pipeline.xack(self._key, GROUP, *entry_ids)
            pipeline.xdel(self._key, *entry_ids)
            await pipeline.execute()

    async def _entries(self, rows: Sequence[tuple[bytes, int, dict[bytes, bytes]]]) -> "list[QueueEntry[JobT]]":
        """The readable rows; the choice of an unreadable one is ended, for no worker of ours could do better."""
        entries = []
        for entry_id, deliveries, fields in rows:
            try:
                job = decode(fields.get(b"job", b""), self._job_type)
            except WireError as error:
                log.error("job_undecodable", queue=self._role.value, entry_id=entry_id.decode(), error=str(error))
                try:
                    request_id, choice = parse_member(fields.get(b"id", b""))
                except ValueError:
                    pass
                else:
                    await self._refuse(request_id, choice, "a worker could not read the job; are versions mixed?")
                await self._remove([entry_id])
                continue
            entries.append(QueueEntry(self._role, entry_id, job, deliveries))
        return entries
