"""From what two workers noted to what a handoff consists of, and to what it does to the steps beside it. Pure."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.handoff.marks import Mark

PHASES = ("offer", "take", "ready", "pull", "join")


@dataclass(frozen=True, slots=True)
class Handoff:
    """From the first token to a place in the batch, in ms."""

    phases_ms: dict[str, float]

    @property
    def total_ms(self) -> float:
        """From the first token being there to the sequence having joined."""
        return sum(self.phases_ms.values())


def handoffs(prefill: Iterable[Mark], decode: Iterable[Mark]) -> dict[str, Handoff]:
    """By request id. offer: the first token is published and the blocks offered; take: the job is handed over and
    taken; ready: until the pull begins; pull; join. Those that came to no end are left out."""
    first = {mark.request_id: mark.began_ns for mark in prefill if mark.name == "first_token"}
    offered = {mark.request_id: mark.ended_ns for mark in prefill if mark.name == "offer"}
    taken = {mark.request_id: mark for mark in decode if mark.name == "take"}
    joined = {mark.request_id: mark.ended_ns for mark in decode if mark.name == "join"}
    pulls = sorted((mark.began_ns, mark.ended_ns) for mark in decode if mark.name == "pull")
    found = {}
    for request_id in first.keys() & offered.keys() & taken.keys() & joined.keys():
        came_ns = taken[request_id].began_ns
        pull = next(((began, ended) for began, ended in pulls if began >= came_ns), None)
        if pull is None:
            continue
        moments = (first[request_id], offered[request_id], came_ns, *pull, joined[request_id])
        durations = [(end - begin) / 1e6 for begin, end in zip(moments, moments[1:], strict=False)]
        found[request_id] = Handoff(dict(zip(PHASES, durations, strict=True)))
    return found


@dataclass(frozen=True, slots=True)
class StepTimes:
    """From the beginning of a step to the next one's, in ms: of those beside which KV arrived, and of the others."""

    with_arrival_ms: list[float]
    without_ms: list[float]

    def delay_ms(self, share: float) -> float:
        """By how much longer a step is at this quantile, where KV arrives."""
        return quantile(self.with_arrival_ms, share) - quantile(self.without_ms, share)


def step_times(prefill: Sequence[Mark], decode: Sequence[Mark], num_sequences: int) -> StepTimes:
    """Of steps of at least so many sequences. Those beside which a prompt was computed are left out: what that takes
    from them is not the handoff's. An arrival is all from the offer to the join."""
    steps = sorted((mark for mark in decode if mark.name == "step"), key=lambda mark: mark.began_ns)
    computed = [(mark.began_ns, mark.ended_ns) for mark in prefill if mark.name == "prefill"]
    first = {mark.request_id: mark.began_ns for mark in prefill if mark.name == "first_token"}
    arrivals = [
        (first[mark.request_id], mark.ended_ns) for mark in decode if mark.name == "join" and mark.request_id in first
    ]
    times = StepTimes([], [])
    for step, following in zip(steps, steps[1:], strict=False):
        if step.amount < num_sequences or following.amount < num_sequences:
            continue
        span = step.began_ns, following.began_ns
        if any(_overlap(span, other) for other in computed):
            continue
        is_beside = any(_overlap(span, other) for other in arrivals)
        (times.with_arrival_ms if is_beside else times.without_ms).append((span[1] - span[0]) / 1e6)
    return times


def between_steps_us(decode: Iterable[Mark], num_sequences: int) -> list[float]:
    """From the end of a computation to the beginning of the next, of this many sequences."""
    steps = sorted((mark for mark in decode if mark.name == "step"), key=lambda mark: mark.began_ns)
    return [
        (following.began_ns - step.ended_ns) / 1e3
        for step, following in zip(steps, steps[1:], strict=False)
        if step.amount == following.amount == num_sequences
    ]


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that no less than `share` of them stay below or reach; nan of nothing."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[max(0, -(-round(share * 1000) * len(ordered) // 1000) - 1)]


def median(values: Sequence[float]) -> float:
    """nan of nothing."""
    return statistics.median(values) if values else float("nan")


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] < other[1] and other[0] < one[1]
