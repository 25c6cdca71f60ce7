"""A job queue: a Redis stream per class, each with its consumer group, where taking an entry leases it.

An entry belongs to the worker that took it until it is acknowledged; if nothing renews it (broker/heartbeat.py) for
`lease_s`, anyone may reclaim it. So an entry can be delivered twice; what that may do is the fence's business
(broker/request_log.py). Jobs are put by the request log's scripts. This file knows no tokens.
"""

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from broker.choice import parse_member
from broker.keys import GROUP, Keys, QueueName
from broker.scripts import load_script
from broker.turns import first_choices
from errors import WireError
from messages.job import DecodeJob, PrefillJob
from messages.request import Priority
from messages.wire import decode
from settings.broker import QueueSettings
from telemetry import get_logger

JobT = TypeVar("JobT", PrefillJob, DecodeJob)

# A longer wait is cut short, so that the socket timeout of blocking connections stays above it.
MAX_BLOCK_MS = 10_000
EVERY_CLASS = tuple(Priority)

log = get_logger()


@dataclass(frozen=True, slots=True)
class QueueEntry(Generic[JobT]):
    """A job as it was delivered to a worker."""

    queue: QueueName
    entry_id: bytes
    job: JobT
    deliveries: int  # 1: never before; a reclaim counts, a renewal does not
    priority: Priority = Priority.NORMAL  # the class whose stream it is in; it stays in it through hand-overs


class JobQueue(Generic[JobT]):
    """One queue. Every method raises redis errors when Redis stays away."""

    def __init__(
        self,
        client: Redis,
        blocking_client: Redis,
        keys: Keys,
        settings: QueueSettings,
        name: QueueName,
        job_type: type[JobT],
        refuse: Callable[[str, int, str], Awaitable[None]],
    ) -> None:
        """`refuse(request_id, choice, why)` ends a choice whose job cannot be read."""
        self._redis = client
        self._blocking_redis = blocking_client
        self._keys = {priority: keys.queue(name, priority) for priority in Priority}
        self._key_of = keys.queue
        self._classes = {key.encode(): priority for priority, key in self._keys.items()}
        self._pulse_key = keys.pulse()
        self._turn_every = settings.turn_every
        self._num_taken = 0
        self._lease_ms = round(settings.lease_s * 1000)
        self._name = name
        self._job_type: type[JobT] = job_type
        self._refuse = refuse

    async def ensure(self) -> None:
        """Create the consumer groups unless they exist. From entry 0 on: what waits already is to be delivered."""
        for key in self._keys.values():
            try:
                await self._redis.xgroup_create(key, GROUP, id="0", mkstream=True)
            except ResponseError as error:
                if not str(error).startswith("BUSYGROUP"):
                    raise

    async def take(
        self, worker_id: str, count: int, block_ms: int = 0, classes: Sequence[Priority] = EVERY_CLASS
    ) -> "list[QueueEntry[JobT]]":
        """At most `count` new entries of `classes` (the most urgent first), in the order of broker/turns.py; when
        there is none, wait up to `block_ms` (0: do not wait) for one.

        A cancelled wait may leave entries delivered but unseen; they are reclaimed after `lease_s` like a dead
        worker's.
        """
        if count < 1:
            return []
        try:
            rows = await self._fetch_or_wait(worker_id, count, block_ms, classes)
        except ResponseError as error:
            await self._restore_group(error)
            rows = await self._fetch_or_wait(worker_id, count, block_ms, classes)
        self._num_taken += len(rows)
        return await self._entries(rows)

    async def ack(self, entries: "Sequence[QueueEntry[PrefillJob] | QueueEntry[DecodeJob]]") -> None:
        """Remove entries, of whichever queue, whose work is done: their choice ended here, or `take` of the request log
        said None.

        A worker that was refused uses `RequestLog.ack_if_stale` instead.
        """
        await self._remove([(self._key_of(entry.queue, entry.priority), entry.entry_id) for entry in entries])

    async def refuse(self, entry: "QueueEntry[JobT]", why: str) -> None:
        """End the choice of an entry that no worker of ours can do anything about, and remove it."""
        await self._refuse(entry.job.request_id, entry.job.choice, why)
        await self._remove([(self._keys[entry.priority], entry.entry_id)])

    async def reclaim(
        self,
        worker_id: str,
        count: int,
        classes: Sequence[Priority] = EVERY_CLASS,
        held: Collection[tuple[str, bytes]] = (),
    ) -> "list[QueueEntry[JobT]]":
        """At most `count` entries of `classes` that nobody renewed for `lease_s`, now this worker's. Forgets gone
        consumers.

        Not those of `held`, (queue's key, entry id): a worker whose beat comes late would else take its own jobs, each
        time as if one more worker had died of them, and keep them from those who could go on with them.
        """
        numbers = {self._keys[priority]: number for number, priority in enumerate(classes, 1)}
        ours: list[str] = [f"{numbers[key]} {entry_id.decode()}" for key, entry_id in held if key in numbers]
        try:
            rows: list[Any] = await load_script("reclaim").run(
                self._redis,
                [self._pulse_key, *(self._keys[priority] for priority in classes)],
                [GROUP, worker_id, self._lease_ms, count, 10 * self._lease_ms, *ours],
            )
        except ResponseError as error:
            await self._restore_group(error)
            return []
        return await self._entries(
            [
                (classes[number - 1], entry_id, deliveries, fields_of(fields))
                for number, entry_id, deliveries, fields in rows
            ]
        )

    async def depth(self) -> int:
        """Entries waiting or being worked on, of all classes."""
        return sum((await self.depths()).values())

    async def depths(self) -> dict[Priority, int]:
        """Entries waiting or being worked on, by class."""
        pipeline = self._redis.pipeline(transaction=True)
        for key in self._keys.values():
            pipeline.xlen(key)
        return dict(zip(self._keys, await pipeline.execute(), strict=True))

    async def _fetch_or_wait(
        self, worker_id: str, count: int, block_ms: int, classes: Sequence[Priority]
    ) -> "list[Row]":
        choices = first_choices(self._num_taken, count, self._turn_every)
        first_looks: list[int] = [classes.index(choice) + 1 if choice in classes else 1 for choice in choices]
        rows = await load_script("fetch").run(
            self._redis, [self._keys[priority] for priority in classes], [GROUP, worker_id, *first_looks]
        )
        if rows or block_ms <= 0:
            return [(classes[number - 1], entry_id, 1, fields_of(fields)) for number, entry_id, fields in rows]
        return await self._wait(worker_id, min(block_ms, MAX_BLOCK_MS), classes)

    async def _wait(self, worker_id: str, block_ms: int, classes: Sequence[Priority]) -> "list[Row]":
        streams: Any = await self._blocking_redis.xreadgroup(
            GROUP, worker_id, {self._keys[priority]: ">" for priority in classes}, count=1, block=block_ms
        )
        rows = [
            (self._classes[key], entry_id, 1, fields) for key, entries in streams or [] for entry_id, fields in entries
        ]
        # One of each class, if several came since the fetch; only one was asked for.
        for priority, entry_id, _, _ in rows[1:]:
            await load_script("put_back").run(self._redis, [self._keys[priority]], [GROUP, worker_id, entry_id])
        return rows[:1]

    async def _restore_group(self, error: ResponseError) -> None:
        # A Redis that lost its data also lost the group; UNBLOCKED is how a blocked read hears of it. Redis 6 puts
        # words of its own before an error that a script met.
        if "NOGROUP" not in str(error) and "UNBLOCKED" not in str(error):
            raise error
        log.info("queue_group_missing", queue=self._name)
        await self.ensure()

    async def _remove(self, places: Sequence[tuple[str, bytes]]) -> None:
        if places:
            pipeline = self._redis.pipeline(transaction=True)
            for key, entry_id in places:
                pipeline.xack(key, GROUP, entry_id)
                pipeline.xdel(key, entry_id)
            await pipeline.execute()

    async def _entries(self, rows: "Sequence[Row]") -> "list[QueueEntry[JobT]]":
        """The readable rows; the choice of an unreadable one is ended, for no worker of ours could do better."""
        entries = []
        for priority, entry_id, deliveries, fields in rows:
            try:
                job = decode(fields.get(b"job", b""), self._job_type)
            except WireError as error:
                log.error("job_undecodable", queue=self._name, entry_id=entry_id.decode(), error=str(error))
                try:
                    request_id, choice = parse_member(fields.get(b"id", b""))
                except ValueError:
                    pass
                else:
                    await self._refuse(request_id, choice, "a worker could not read the job; are versions mixed?")
                await self._remove([(self._keys[priority], entry_id)])
                continue
            entries.append(QueueEntry(self._name, entry_id, job, deliveries, priority))
        return entries


Row = tuple[Priority, bytes, int, dict[bytes, bytes]]  # class, entry id, deliveries, fields


def fields_of(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
