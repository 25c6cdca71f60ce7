"""What two looks at the workers tell."""

from typing import Any

from api.incidents import MAX_INCIDENTS, Incidents
from messages.kv_transfer import TransferCount
from messages.worker_status import FinishedPhase, Role, WorkerState, WorkerStatus
from observability import catalogue
from tests.api.fake_cluster import status


def decode(worker_id: str = "decode-0", **changes: Any) -> WorkerStatus:
    return status(Role.DECODE, worker_id=worker_id, **changes)


def told(*looks: list[WorkerStatus]) -> list[tuple[str, str]]:
    incidents = Incidents()
    for number, workers in enumerate(looks):
        incidents.look(workers, number)
    return [(one.kind, one.subject) for one in reversed(incidents.latest())]


def test_who_is_there_at_the_first_look_is_no_news() -> None:
    counters = {catalogue.RECLAIMED.name: 3}
    assert told([decode(counters=counters)], [decode(counters=counters)]) == []


def test_a_worker_that_dies_one_that_leaves_and_one_that_comes() -> None:
    assert told([decode()], []) == [("gone", "decode-0")]
    draining = decode(state=WorkerState.DRAINING)
    assert told([decode()], [draining], []) == [("draining", "decode-0"), ("left", "decode-0")]
    loading = decode(state=WorkerState.LOADING)
    assert told([], [loading], [decode()], [decode()]) == [("joined", "decode-0")]


def test_what_has_grown_is_told_once() -> None:
    before, after = ({catalogue.RECLAIMED.name: number} for number in (1, 3))
    assert told([decode(counters=before)], [decode(counters=after)], [decode(counters=after)]) == [
        ("reclaimed", "decode-0")
    ]
    incidents = Incidents()
    incidents.look([decode(counters=before)], 1)
    incidents.look([decode(counters=after)], 2)
    assert incidents.latest()[0].detail == "took over 2 jobs left behind"


def test_a_failed_transfer_and_a_continued_request() -> None:
    failed = decode(transfers={"shared_memory": TransferCount(pulls=2, failures=1)})
    assert told([decode()], [failed]) == [("pull_failed", "decode-0")]
    incidents = Incidents()
    done = FinishedPhase(1, "r", 0, "decode", 5, 1.0)
    incidents.continued([("decode-1", done), ("decode-1", FinishedPhase(2, "r", 0, "reclaimed", 6, 0.0))])
    (one,) = incidents.latest()
    assert (one.kind, one.subject, one.request_id, one.at_ms) == ("continued", "decode-1", "r", 6)


def test_redis_is_away_and_back_once_each() -> None:
    incidents = Incidents()
    incidents.look([decode()], 1)
    incidents.redis_away(2)
    incidents.redis_away(3)
    incidents.look([decode()], 4)
    assert [one.kind for one in incidents.latest()] == ["redis_back", "redis_away"]


def test_what_is_kept_is_bounded() -> None:
    incidents = Incidents()
    for number in range(MAX_INCIDENTS):
        incidents.look([decode()], number)
        incidents.look([], number)
    assert len(incidents.latest()) == MAX_INCIDENTS
