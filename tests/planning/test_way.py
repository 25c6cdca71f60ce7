"""What a server's answers say of the way: a simulated server's way is found again."""

from collections.abc import Sequence

import msgspec
import pytest

from bench.record import RequestRecord
from planning.cluster import Size, simulate
from planning.costs import Point, StepCosts, Way
from planning.load import Groups, Request
from planning.way import ALONE, BESIDE, LONG, PHASES, SHORT, STREAMS, TOGETHER, shared_stretch, way_of
from settings.loading import Settings
from tests.planning.simple_costs import costs_of

POINTS = tuple(
    Point(threads, size, context, (0.01 + size * 0.0005 + context * 1e-6) * 2 / threads)
    for threads in (1, 2)
    for size in (1, 128)
    for context in (0, 1000)
)
WAY = Way(0.02, 0.006, 2e-5, 0.002, 0.001, 1e-4, 1.4)
COSTS = costs_of(POINTS, POINTS, WAY, cores=2, token_budget=128)


def records_of(costs: StepCosts) -> dict[str, Sequence[RequestRecord]]:
    """What the bench would see of each phase, if the server were the simulation. Tokens come evenly after the first."""
    records: dict[str, Sequence[RequestRecord]] = {}
    for groups in PHASES:
        simulated = simulate(costs, Settings(), Size(1, 1), Groups(groups, 0))
        for group in groups:
            requests = [request for request in simulated.requests if request.group == group.name]
            records[group.name] = [record_of(request) for request in requests]
    return records


def record_of(request: Request) -> RequestRecord:
    first_s, gap_s = request.first_token_s, request.tpot_s or 0.0
    arrivals_s = [first_s + number * gap_s for number in range(request.output_tokens)]
    return RequestRecord(
        request.group, 0, request.prompt_tokens, request.output_tokens, request.arrival_s, arrivals_s=arrivals_s
    )


def test_the_way_of_a_server_is_found_again() -> None:
    found = way_of(COSTS, records_of(COSTS))
    assert found.front_s == pytest.approx(WAY.front_s, abs=1e-6)
    assert found.prefill_gap_s == pytest.approx(WAY.prefill_gap_s, abs=1e-6)
    assert found.handoff_s == pytest.approx(WAY.handoff_s, abs=2e-4)
    assert found.handoff_token_s == pytest.approx(WAY.handoff_token_s, rel=0.05)
    # The handoff is in the first gap of a stream, and these records spread it over all.
    assert found.decode_gap_s == pytest.approx(WAY.decode_gap_s, abs=5e-4)
    assert found.token_s == pytest.approx(WAY.token_s, abs=2e-4)


@pytest.mark.parametrize("stretch", [1.0, 1.2, 1.7])
def test_the_stretch_of_a_server_is_found_again(stretch: float) -> None:
    costs = msgspec.structs.replace(COSTS, way=msgspec.structs.replace(WAY, shared_stretch=stretch))
    assert shared_stretch(COSTS, Settings(), records_of(costs)) == pytest.approx(stretch, abs=0.05)


def test_who_has_a_device_of_its_own_stretches_nothing() -> None:
    points = tuple(Point(0, each.size, each.context, each.seconds) for each in POINTS if each.threads == 2)
    costs = costs_of(points, points)
    assert shared_stretch(costs, Settings(), records_of(costs)) == 1.0


def test_the_phases_ask_what_is_told_apart() -> None:
    """Two lengths, one stream and many, prompts beside streams; no preset of `pdq bench` is among them."""
    assert SHORT.prompt_tokens < LONG.prompt_tokens and SHORT.output_tokens == LONG.output_tokens == 2
    assert (ALONE, TOGETHER, STREAMS, BESIDE) == (*PHASES[3], *PHASES[4], *PHASES[5])
