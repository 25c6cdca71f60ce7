"""What went wrong in the cluster and how it was met, read off two successive looks at its workers.

Pure: statuses in, sentences out. A worker's counters begin at 0 with it, so that a new one is no incident. Knows no
Redis; what nobody looked at in between has not been seen.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from messages.worker_status import FinishedPhase, WorkerState, WorkerStatus
from observability import catalogue

MAX_INCIDENTS = 100

# By the counter that grew: its kind here, and what to say of one and of several.
_COUNTED: Mapping[str, tuple[str, str, str]] = {
    catalogue.RECLAIMED.name: ("reclaimed", "took over a job that was left behind", "took over {} jobs left behind"),
    catalogue.FENCED.name: ("fenced", "wrote a token too late, which was refused", "wrote {} tokens too late, refused"),
    catalogue.FAILED.name: ("failed", "ended a sequence with an error", "ended {} sequences with an error"),
    catalogue.EXPIRED.name: ("expired", "ended a sequence that was late", "ended {} sequences that were late"),
    catalogue.PREEMPTED.name: ("preempted", "had no KV blocks left; a sequence is computed again", "had no KV blocks "
    "left; {} sequences are computed again"),
    catalogue.REFUSED_HANDLES.name: ("refused", "refused a KV handle", "refused {} KV handles"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Incident:
    """One line of the list. `kind`: joined, gone, left, reclaimed, continued, pull_failed, redis_away, redis_back..."""

    number: int
    at_ms: int  # Unix time
    kind: str
    subject: str  # a worker's id, or Redis
    detail: str
    request_id: str = ""


class Incidents:
    """One per API process."""

    def __init__(self) -> None:
        self._kept: deque[Incident] = deque(maxlen=MAX_INCIDENTS)
        self._num = 0
        self._known: dict[str, WorkerStatus] | None = None  # None: not looked yet, so that nobody is new
        self._is_redis_away = False

    def look(self, workers: Sequence[WorkerStatus], now_ms: int) -> None:
        """The live workers as of now."""
        if self._is_redis_away:
            self._is_redis_away = False
            self._add(now_ms, "redis_back", "Redis", "can be reached again")
        before, now = self._known, {worker.worker_id: worker for worker in workers}
        self._known = now
        if before is None:
            return
        for worker_id, worker in before.items():
            if worker_id not in now:
                self._note_gone(worker, now_ms)
        for worker in workers:
            self._compare(before.get(worker.worker_id), worker, now_ms)

    def continued(self, phases: Iterable[tuple[str, FinishedPhase]]) -> None:
        """Of (worker, phase) those that tell of a request going on elsewhere."""
        for worker_id, phase in phases:
            if phase.name == "reclaimed":
                detail = "goes on with a request from its last published token"
                self._add(phase.ended_ms, "continued", worker_id, detail, phase.request_id)

    def redis_away(self, now_ms: int) -> None:
        """Redis did not answer."""
        if not self._is_redis_away:
            self._is_redis_away = True
            self._add(now_ms, "redis_away", "Redis", "cannot be reached; streams wait for it")

    def latest(self) -> list[Incident]:
        """All that is kept, the newest first."""
        return sorted(self._kept, key=lambda one: (-one.at_ms, -one.number))

    def _note_gone(self, worker: WorkerStatus, now_ms: int) -> None:
        if worker.state is WorkerState.DRAINING:
            self._add(now_ms, "left", worker.worker_id, "was stopped and has handed on what it had")
        else:
            running = f", with {worker.num_running} running" if worker.num_running else ""
            detail = f"is gone: no heartbeat from {worker.host} any more{running}"
            self._add(now_ms, "gone", worker.worker_id, detail)

    def _compare(self, before: WorkerStatus | None, now: WorkerStatus, now_ms: int) -> None:
        was_ready = before is not None and before.state is not WorkerState.LOADING
        if now.state is WorkerState.READY and not was_ready:
            self._add(now_ms, "joined", now.worker_id, f"is ready on {now.host}")
        if before is not None and before.state is WorkerState.READY and now.state is WorkerState.DRAINING:
            self._add(now_ms, "draining", now.worker_id, "stops and hands on what it has")
        counted = before.counters if before is not None else {}
        for name, (kind, one, several) in _COUNTED.items():
            grown = now.counters.get(name, 0) - counted.get(name, 0)
            if grown > 0:
                self._add(now_ms, kind, now.worker_id, one if grown == 1 else several.format(grown))
        failures = _pull_failures(now) - (_pull_failures(before) if before is not None else 0)
        if failures > 0:
            detail = f"{failures} of its KV transfers failed; those requests go back to prefill"
            self._add(now_ms, "pull_failed", now.worker_id, detail)

    def _add(self, at_ms: int, kind: str, subject: str, detail: str, request_id: str = "") -> None:
        self._num += 1
        self._kept.append(Incident(self._num, at_ms, kind, subject, detail, request_id))


def _pull_failures(worker: WorkerStatus) -> int:
    return sum(count.failures for count in worker.transfers.values())
