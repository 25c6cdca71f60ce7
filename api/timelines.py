"""The last requests and what became of each: when it came, its first token, its end, and the phases between.

What came to this API process is told by measurement.py, the phases by the workers' heartbeats, so that of another API
process's request only the phases are known. Bounded, pure, and without any text.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from messages.worker_status import FinishedPhase, WorkerStatus

MAX_TIMELINES = 60
MAX_BARS = 32  # of one request


@dataclass(slots=True)
class Timeline:
    """Of one request. Times are Unix times (ms), 0: not yet, or not known here."""

    request_id: str
    created_ms: int = 0
    first_token_ms: int = 0
    ended_ms: int = 0
    finish_reason: str = ""
    prompt_tokens: int = 0
    output_tokens: int = 0
    bars: list[tuple[str, FinishedPhase]] = field(default_factory=list)  # (worker, phase)


class Timelines:
    """One per API process."""

    def __init__(self) -> None:
        self._by_id: OrderedDict[str, Timeline] = OrderedDict()
        self._seen: dict[str, int] = {}  # by worker: number of the last phase that was taken

    def begin(self, request_id: str, created_ms: int, prompt_tokens: int) -> Timeline:
        """The request was created here."""
        timeline = self._of(request_id)
        timeline.created_ms, timeline.prompt_tokens = created_ms, prompt_tokens
        return timeline

    def note(self, workers: Iterable[WorkerStatus]) -> list[tuple[str, FinishedPhase]]:
        """Take over what the workers have seen end; (worker, phase) of each that is new, in the workers' order."""
        new: list[tuple[str, FinishedPhase]] = []
        seen: dict[str, int] = {}
        for worker in workers:
            last = self._seen.get(worker.worker_id, 0)
            new += [(worker.worker_id, phase) for phase in worker.phases if phase.number > last]
            seen[worker.worker_id] = max([last, *(phase.number for phase in worker.phases)])
        self._seen = seen
        for worker_id, phase in new:
            timeline = self._of(phase.request_id)
            if len(timeline.bars) < MAX_BARS:
                timeline.bars.append((worker_id, phase))
        return new

    def latest(self) -> list[Timeline]:
        """All that is kept, the newest first."""
        return list(reversed(self._by_id.values()))

    def _of(self, request_id: str) -> Timeline:
        timeline = self._by_id.get(request_id)
        if timeline is None:
            timeline = self._by_id[request_id] = Timeline(request_id)
            if len(self._by_id) > MAX_TIMELINES:
                self._by_id.popitem(last=False)
        return timeline
