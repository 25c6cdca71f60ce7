"""Which phases a heartbeat carries."""

import time

import pytest

from broker.status_board import StatusBoard
from messages.worker_status import Role
from observability.worker_meters import RECENT_PHASES, RECENT_S, WorkerMeters
from tests.broker.samples import make_request


def test_phases_are_numbered_bounded_and_without_text() -> None:
    meters = WorkerMeters()
    request = make_request("r")
    for number in range(RECENT_PHASES + 10):
        meters.phase(meters.prefill, 0.25, "prefill", request, choice=number % 2, tokens=5)
    recent = meters.recent_phases()
    assert [phase.number for phase in recent] == list(range(11, RECENT_PHASES + 11))
    first = recent[0]
    assert (first.request_id, first.name, first.choice, first.took_ms) == ("r", "prefill", 0, 250.0)
    assert abs(first.ended_ms - time.time() * 1000) < 5000


def test_an_idle_workers_heartbeat_carries_none(monkeypatch: pytest.MonkeyPatch) -> None:
    board = StatusBoard(Role.DECODE)
    board.meters.span("decode", 1.0, make_request("r"), choice=0)
    assert [phase.name for phase in board.read().phases] == ["decode"]
    later = time.time() + RECENT_S + 1
    monkeypatch.setattr("observability.worker_meters.time.time", lambda: later)
    assert board.read().phases == ()
