"""A worker's sign of life, from a thread of its own with a Redis connection of its own.

Neither a blocked event loop nor a long computation may make a living worker look dead, so this thread touches neither.
It renews the worker's registry lease and every queue entry the worker holds, in one script per beat. A loop that does
not come round any more must not keep its entries for ever, so this thread also watches that. It knows nothing of what
the entries are for.
"""

import threading
import time
from collections.abc import Callable, Sequence

from redis.exceptions import RedisError

from broker.client import open_sync_redis
from broker.job_queue import QueueEntry
from broker.keys import GROUP, Keys
from broker.scripts import load_script
from broker.stall_watch import StallWatch
from messages.job import DecodeJob, PrefillJob
from messages.wire import encode
from messages.worker_status import Role, WorkerStatus
from settings.broker import QueueSettings, RedisSettings
from telemetry import get_logger

log = get_logger()


class Heartbeat:
    """Beats every `heartbeat_s` from `start` to `stop`; a beat that fails is tried again at the next one."""

    def __init__(
        self,
        redis_settings: RedisSettings,
        queue_settings: QueueSettings,
        worker_id: str,
        role: Role,
        read_status: Callable[[], WorkerStatus],
        on_tick: Sequence[Callable[[], object]] = (),
        num_rounds: Callable[[], int | None] = lambda: None,
        on_stall: Callable[[], object] = lambda: None,
    ) -> None:
        """`read_status`, `on_tick` and `num_rounds` are called on the thread, once per beat; they must be quick and not
        raise. `num_rounds` says how often the loop came round, None while there is no loop; after `queue.stall_s`
        without a round nothing is renewed any more and `on_stall` is called, once.
        """
        self.on_tick = list(on_tick)
        self._worker_id = worker_id
        self._read_status = read_status
        self._num_rounds, self._on_stall = num_rounds, on_stall
        self._stall_watch = StallWatch(queue_settings.stall_s)
        self._keys = Keys(redis_settings.key_prefix)
        self._lease_ms = round(queue_settings.lease_s * 1000)
        self._heartbeat_s = queue_settings.heartbeat_s
        self._longest_beat_s = queue_settings.lease_s + queue_settings.heartbeat_s
        # The next beat is the retry; a beat that hangs longer than half a lease would cost the lease.
        self._redis = open_sync_redis(redis_settings, timeout_s=queue_settings.lease_s / 2)
        # By queue and entry id (ids of two classes may be equal), as it was delivered to us.
        self._held: dict[tuple[str, bytes], QueueEntry[PrefillJob] | QueueEntry[DecodeJob]] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping = False
        self._failing = False
        self._thread = threading.Thread(target=self._run, name=f"{role.value}-heartbeat", daemon=True)

    def start(self) -> None:
        """Begin beating, at once."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and take the worker off the registry. Held entries are left to be reclaimed."""
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        try:
            self._redis.zrem(self._keys.worker_leases(), self._worker_id)
            self._redis.hdel(self._keys.workers(), self._worker_id)
        except RedisError as error:
            log.warning("deregister_failed", error=str(error))  # the lease runs out by itself
        self._redis.close()

    def wake(self) -> None:
        """Beat now, e.g. because the status changed."""
        self._wake.set()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs; if it does not after `start`, a callback raised."""
        return self._thread.is_alive()

    def hold(self, entry: "QueueEntry[PrefillJob] | QueueEntry[DecodeJob]") -> None:
        """Renew this entry from the next beat on."""
        with self._lock:
            self._held[self._place(entry)] = entry

    def drop(self, entry: "QueueEntry[PrefillJob] | QueueEntry[DecodeJob]") -> None:
        """Renew it no more; harmless when it is not held, or was delivered to us once more since."""
        with self._lock:
            if self._held.get(self._place(entry)) == entry:
                del self._held[self._place(entry)]

    def holds(self, entry: "QueueEntry[PrefillJob] | QueueEntry[DecodeJob]") -> bool:
        """Whether the entry is being renewed; one that another worker reclaimed no longer is, even if we have it back
        by another delivery."""
        with self._lock:
            return self._held.get(self._place(entry)) == entry

    def held(self) -> set[tuple[str, bytes]]:
        """(queue's key, entry id) of everything that is being renewed."""
        with self._lock:
            return set(self._held)

    def _place(self, entry: "QueueEntry[PrefillJob] | QueueEntry[DecodeJob]") -> tuple[str, bytes]:
        return self._keys.queue(entry.queue, entry.priority), entry.entry_id

    def _run(self) -> None:
        looked_at = time.monotonic()
        while not self._stopping:
            self._wake.clear()
            is_renewed = self._beat()
            now = time.monotonic()
            # A loop that waits for Redis is not stalled; and who was stopped and woken has not seen the time go by.
            seen_s = min(now - looked_at, self._longest_beat_s) if is_renewed else 0.0
            looked_at = now
            if self._stall_watch.is_stalled(self._num_rounds(), seen_s):
                log.error("worker_stalled", no_progress_s=round(self._stall_watch.waited_s, 1))
                self._on_stall()
                return
            for tick in self.on_tick:
                tick()
            self._wake.wait(self._heartbeat_s)

    def _beat(self) -> bool:
        """Whether Redis heard it."""
        with self._lock:
            held = dict(self._held)
        try:
            lost: list[int] = load_script("heartbeat").run_sync(
                self._redis,
                [
                    self._keys.workers(),
                    self._keys.worker_leases(),
                    self._keys.pulse(),
                    *(queue for queue, _ in held),
                ],
                [
                    GROUP,
                    self._worker_id,
                    self._lease_ms,
                    encode(self._read_status()),
                    *(entry_id for _, entry_id in held),
                ],
            )
        except RedisError as error:
            if not self._failing:
                log.warning("heartbeat_failed", error=str(error))
            self._failing = True
            return False
        if self._failing:
            log.info("heartbeat_restored")
        self._failing = False
        if lost:
            log.info("lease_lost", entries=len(lost))
            places = list(held)
            with self._lock:
                for place in (places[number - 1] for number in lost):
                    # What was lost when Redis looked may have been delivered to us again since.
                    if self._held.get(place) is held[place]:
                        del self._held[place]
        return True
