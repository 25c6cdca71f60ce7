"""Cores that steps share: work is conserved, speed changes in the middle of a step, the ledger's stamp stays fresh."""

import re
from pathlib import Path

import pytest

from planning.clock import Clock
from planning.costs import Cost
from planning.host import FRESH_S, SETTLE_S, Host

EVEN = Cost([1, 2], [2.0, 1.0])  # speed in proportion to the threads


def test_fresh_is_what_the_ledger_says() -> None:
    source = (Path(__file__).parents[2] / "kernels" / "cpu" / "cores.cpp").read_text()
    found = re.search(r"FRESH_NS = ([\d']+);", source)
    assert found and int(found[1].replace("'", "")) == FRESH_S * 1e9


def test_two_steps_that_overlap_share_and_the_work_is_the_same() -> None:
    clock = Clock()
    host = Host(clock, 2)
    ends: dict[str, float] = {}
    first, second = (host.seat(lambda: None) for _ in range(2))
    host.compute(first, EVEN, lambda: ends.update(first=clock.now_s))
    clock.after(0.5, lambda: host.compute(second, EVEN, lambda: ends.update(second=clock.now_s)))
    clock.run()
    # Alone for 0.5 s, then half the speed for the other half; then the stamp is fresh, then the second is alone.
    assert ends["first"] == pytest.approx(1.5)
    assert ends["second"] == pytest.approx(2.0 + FRESH_S / 2)
    assert first.busy_s == pytest.approx(1.5) and second.busy_s == pytest.approx(1.5 + FRESH_S / 2)


def test_who_leaves_is_not_waited_for() -> None:
    clock = Clock()
    host = Host(clock, 2)
    ends: list[float] = []
    first, second = (host.seat(lambda: None) for _ in range(2))

    def ended() -> None:
        clock.after(0.0, lambda: host.leave(first))

    host.compute(first, EVEN, ended)
    clock.after(0.5, lambda: host.compute(second, EVEN, lambda: ends.append(clock.now_s)))
    clock.run()
    assert ends == pytest.approx([2.0])


def test_steps_stretch_until_those_who_compute_have_settled() -> None:
    clock = Clock()
    host = Host(clock, 2, shared_stretch=1.5)
    ends: list[float] = []
    for seat in (host.seat(lambda: None), host.seat(lambda: None)):
        host.compute(seat, EVEN, lambda: ends.append(clock.now_s))
    clock.run()
    settled_s = SETTLE_S + 2.0 * (1 - SETTLE_S / (1.5 * 2.0))
    assert ends == pytest.approx([settled_s, settled_s])


def test_beside_who_comes_and_goes_steps_stay_stretched() -> None:
    def end_s(stretch: float) -> float:
        clock = Clock()
        host = Host(clock, 2, stretch)
        ends: list[float] = []
        long, short = host.seat(lambda: None), host.seat(lambda: None)

        def work() -> None:
            host.compute(short, Cost([1, 2], [0.01, 0.005]), soon)

        def soon() -> None:
            clock.after(0.0, pause)

        def pause() -> None:
            host.leave(short)
            if not ends:
                clock.after(SETTLE_S / 4, work)

        host.compute(long, EVEN, lambda: ends.append(clock.now_s))
        work()
        clock.run()
        return ends[0]

    # The short one computes for more than half of the time.
    assert end_s(1.5) > 1.2 * end_s(1.0)


def test_on_devices_of_their_own_nobody_shares() -> None:
    clock = Clock()
    host = Host(clock, 0, shared_stretch=1.5)
    ends: list[float] = []
    seats = [host.seat(lambda: None) for _ in range(3)]
    for seat in seats:
        host.compute(seat, Cost([0], [1.0]), lambda: ends.append(clock.now_s))
    assert not host.others_compute(seats[0])
    clock.run()
    assert ends == [1.0, 1.0, 1.0]
