"""What this API process knows of the cluster: workers and loads, read from Redis when what is known is too old.

Knows the registry and the request log; judges nothing. Concurrent readers share one read.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Generic, TypeVar

from redis.exceptions import RedisError

from broker.choice import SequenceLoad
from broker.client import Broker
from messages.worker_status import Role, WorkerState, WorkerStatus
from settings.api import ApiSettings
from telemetry import get_logger

log = get_logger()

WATCH_EVERY_S = 0.5

ValueT = TypeVar("ValueT")


class _Cached(Generic[ValueT]):
    """A value read again when it is older than `max_age_s`. The age counts from before the read."""

    def __init__(self, read: Callable[[], Awaitable[ValueT]], max_age_s: float) -> None:
        self._read, self._max_age_s = read, max_age_s
        self._known: tuple[float, ValueT] | None = None
        self._reading: asyncio.Task[ValueT] | None = None

    async def get(self) -> ValueT:
        now = time.monotonic()
        if self._known is not None and now - self._known[0] <= self._max_age_s:
            return self._known[1]
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read_at(now))
        # A failure is shared too: who waited for one and then began a read of its own would wait twice as long as a
        # command may take. Shielded, as who leaves is not to take the answer along.
        return await asyncio.shield(self._reading)

    async def _read_at(self, now: float) -> ValueT:
        value = await self._read()
        self._known = (now, value)
        return value


class ClusterView:
    """One per API process. `watch` must run for `absent_s` to mean anything."""

    def __init__(self, broker: Broker, settings: ApiSettings, clock: Callable[[], float] = time.monotonic) -> None:
        # Half of the promised age, so that the answer keeps it even when the read itself is slow.
        max_age_s = settings.token_load_max_age_s / 2
        self._workers = _Cached(broker.registry.live, max_age_s)
        self._loads = _Cached(broker.request_reader.loads, max_age_s)
        self._clock = clock
        # When each role was last seen filled. Long ago at first: before any worker was seen there is none to wait for.
        self._seen_at = dict.fromkeys(Role, float("-inf"))

    async def workers(self) -> list[WorkerStatus]:
        """Workers whose lease stands. Raises RedisError."""
        workers = await self._workers.get()
        self._note(workers)
        return workers

    async def loads(self) -> list[SequenceLoad]:
        """Every unfinished sequence. Raises RedisError."""
        return await self._loads.get()

    def absent_s(self, role: Role) -> float:
        """For how long no worker of `role` was seen ready; inf when none ever was."""
        return self._clock() - self._seen_at[role]

    def longest_absent(self, roles: Iterable[Role]) -> tuple[Role, float]:
        """The role of `roles` that has been without a ready worker for longest, and for how many seconds."""
        return max(((role, self.absent_s(role)) for role in roles), key=lambda pair: pair[1])

    async def watch(self, on_look: Callable[[Sequence[WorkerStatus] | None], None] = lambda workers: None) -> None:
        """Keep `absent_s` true, for ever. While Redis is away nobody is seen. `on_look` is told each time who was; None
        while Redis is away."""
        while True:
            try:
                on_look(await self.workers())
            except RedisError as error:
                log.warning("registry_unreadable", reason=type(error).__name__)
                on_look(None)
            await asyncio.sleep(WATCH_EVERY_S)

    def _note(self, workers: Sequence[WorkerStatus]) -> None:
        now = self._clock()
        for worker in workers:
            if worker.state == WorkerState.READY:
                self._seen_at[worker.role] = now
