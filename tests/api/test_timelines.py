"""What is remembered of requests."""

import msgspec

from api.timelines import MAX_BARS, MAX_TIMELINES, Timelines
from messages.worker_status import FinishedPhase, Role, WorkerStatus
from tests.api.fake_cluster import status


def phases(*numbers: int, request_id: str = "r", name: str = "decode") -> tuple[FinishedPhase, ...]:
    return tuple(FinishedPhase(number, request_id, 0, name, 1000 + number, 5.0) for number in numbers)


def worker(*finished: FinishedPhase, worker_id: str = "decode-0") -> WorkerStatus:
    return msgspec.structs.replace(status(Role.DECODE), worker_id=worker_id, phases=finished)


def test_a_phase_that_several_heartbeats_carry_is_one_bar() -> None:
    timelines = Timelines()
    assert len(timelines.note([worker(*phases(1, 2))])) == 2
    assert [phase.number for _, phase in timelines.note([worker(*phases(1, 2, 3))])] == [3]
    assert timelines.note([worker()]) == timelines.note([worker(*phases(2, 3))]) == []
    (one,) = timelines.latest()
    assert [phase.number for _, phase in one.bars] == [1, 2, 3]


def test_phases_of_several_workers_are_one_requests() -> None:
    timelines = Timelines()
    began = timelines.begin("r", 900, 7)
    timelines.note([worker(*phases(1), worker_id="a"), worker(*phases(1), worker_id="b")])
    assert [worker_id for worker_id, _ in began.bars] == ["a", "b"]
    assert timelines.latest() == [began] and began.prompt_tokens == 7


def test_a_worker_that_came_anew_counts_anew() -> None:
    timelines = Timelines()
    timelines.note([worker(*phases(5))])
    timelines.note([])  # it is gone
    assert len(timelines.note([worker(*phases(1))])) == 1


def test_what_is_kept_is_bounded() -> None:
    timelines = Timelines()
    for number in range(MAX_TIMELINES + 5):
        timelines.begin(f"r{number}", number, 1)
    assert [one.request_id for one in timelines.latest()][:: MAX_TIMELINES - 1] == ["r64", "r5"]
    timelines.note([worker(*phases(*range(1, MAX_BARS + 20), request_id="r64"))])
    assert len(timelines.latest()[0].bars) == MAX_BARS
