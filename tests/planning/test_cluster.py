"""The simulation against theory and its own books: nothing is lost, nobody idles beside work, M/D/1, Little's law."""

import random
import statistics

import pytest

from bench.workload import Concurrency, Group, Periodic, Poisson
from errors import ConfigError
from planning.cluster import Simulated, Size, simulate
from planning.costs import StepCosts, Way
from planning.load import Groups, Load
from settings.loading import Settings, load_settings
from tests.planning.simple_costs import At, costs_of, flat, per_token


def run(costs: StepCosts, load: Load, size: Size | None = None, settings: Settings | None = None) -> Simulated:
    return simulate(costs, settings or Settings(), size or Size(1, 1), load)


def mixed(rate_rps: float, num: int, seed: int = 0) -> At:
    """Poisson arrivals of prompts and outputs of many lengths."""
    draws = random.Random(seed)
    time_s, requests = 0.0, []
    for _ in range(num):
        time_s += draws.expovariate(rate_rps)
        requests.append((time_s, draws.randint(1, 400), draws.randint(1, 60)))
    return At(*requests)


REAL = costs_of(per_token(0.001), per_token(0.002), Way(0.01, 0.005, 1e-6, 0.001, 0.001, 1e-4))
SHARED = costs_of(flat(0.05, (1, 2)), flat(0.02, (1, 2)), Way(0.01, 0.005, 1e-6, 0.001, 0.001, 1e-4, 1.3), cores=2)


def test_one_request_takes_what_its_steps_and_its_way_take() -> None:
    """250 tokens in steps of 100 are three; then nine decode steps, with what lies between."""
    way = Way(front_s=1.0, handoff_s=0.5, handoff_token_s=0.001, prefill_gap_s=0.1, decode_gap_s=0.01, token_s=0.002)
    simulated = run(costs_of(flat(2.0), flat(0.3), way), At((5.0, 250, 10)))
    (request,) = simulated.requests
    assert request.ttft_s == pytest.approx(1.0 + 3 * 2.0 + 2 * 0.1)
    assert request.last_token_s - request.first_token_s == pytest.approx(0.5 + 0.25 + 9 * 0.3 + 8 * (0.01 + 0.002))
    assert simulated.prefill_busy_s == pytest.approx((6.0,))
    assert simulated.decode_busy_s == pytest.approx((2.7,))


@pytest.mark.parametrize("load_share", [0.3, 0.6, 0.8])
def test_prefill_alone_is_an_m_d_1_queue(load_share: float) -> None:
    """Prompts of one step each, one token each: mean wait = rho * s / (2 * (1 - rho)) (Pollaczek and Khinchine)."""
    step_s = 0.1
    group = Group("all", Poisson(load_share / step_s), 100, 1, num_requests=30_000)
    simulated = run(costs_of(flat(step_s), flat(1.0)), Groups((group,), 1))
    wait_s = statistics.fmean(request.ttft_s for request in simulated.requests) - step_s
    assert wait_s == pytest.approx(load_share * step_s / (2 * (1 - load_share)), rel=0.08)
    assert sum(simulated.prefill_busy_s) / simulated.duration_s == pytest.approx(load_share, rel=0.02)


@pytest.mark.parametrize(
    ("costs", "size"), [(REAL, Size(1, 1)), (REAL, Size(2, 3)), (SHARED, Size(1, 1)), (SHARED, Size(2, 2, 2))]
)
def test_every_request_gets_all_of_its_tokens_and_littles_law_holds(costs: StepCosts, size: Size) -> None:
    simulated = run(costs, mixed(3.0, 150), size)
    assert len(simulated.requests) == 150
    for request in simulated.requests:
        assert request.num_output == request.output_tokens
        assert request.arrival_s < request.first_token_s <= request.last_token_s
    times_s = sum(request.last_token_s - request.arrival_s for request in simulated.requests)
    assert simulated.request_seconds == pytest.approx(times_s)  # L = lambda * W, both times the duration


def test_no_prefill_worker_idles_while_prompts_wait() -> None:
    """All come at once: without gaps the worker computes from the first to the last prompt, and what they cost."""
    simulated = run(costs_of(per_token(0.001), flat(0.001)), At(*[(0.0, 130, 1)] * 40))
    assert simulated.duration_s == pytest.approx(40 * 0.130)
    assert simulated.prefill_busy_s == pytest.approx((40 * 0.130,))


def test_work_is_the_same_however_it_arrives() -> None:
    """Costs by the token: busy seconds are the prompts', whatever the order and the number of workers."""
    for load in (mixed(1.0, 80), mixed(100.0, 80)):
        tokens = sum(prompt for _, prompt, _ in load.requests)
        for size in (Size(1, 1), Size(3, 2)):
            busy_s = run(costs_of(per_token(0.001), per_token(0.001)), load, size).prefill_busy_s
            assert sum(busy_s) == pytest.approx(tokens * 0.001)


@pytest.mark.parametrize("seed", range(4))
def test_more_workers_are_never_worse(seed: int) -> None:
    """With a device each. Single requests may be worse off (Graham 1969); the mean is not."""
    load = mixed(4.0, 200, seed)

    def figures(size: Size) -> tuple[float, float]:
        requests = run(REAL, load, size).requests
        ends_s = [request.last_token_s - request.first_token_s for request in requests]
        return statistics.fmean(request.ttft_s for request in requests), statistics.fmean(ends_s)

    by_prefill = [figures(Size(num, 2))[0] for num in (1, 2, 3, 4)]
    by_decode = [figures(Size(2, num))[1] for num in (1, 2, 3, 4)]
    for fewer, more in zip(by_prefill + by_decode, by_prefill[1:] + by_decode[1:], strict=False):
        if fewer != by_prefill[-1]:
            assert more <= fewer * 1.01
    assert by_prefill[1] < by_prefill[0] * 0.9 and by_decode[1] < by_decode[0] * 0.9


def test_workers_of_one_host_share_its_cores() -> None:
    """What a second host takes over is not computed here: streams beside prompts are slower on one host than on two."""
    groups = (
        Group("streams", Concurrency(4), 50, 100, num_requests=4),
        Group("prompts", Periodic(0.2), 100, 1, num_requests=20),
    )
    one, two = (run(SHARED, Groups(groups, 0), Size(1, 1, hosts)) for hosts in (1, 2))

    def tpot_s(simulated: Simulated) -> float:
        return statistics.fmean(tpot for one in simulated.requests if (tpot := one.tpot_s) is not None)

    assert tpot_s(one) > 1.2 * tpot_s(two)


def test_without_rests_prompts_take_longer_and_streams_do_not_wait() -> None:
    costs = costs_of(flat(0.05, (1, 2)), flat(0.01, (1, 2)), cores=2)
    groups = (
        Group("streams", Concurrency(4), 50, 200, num_requests=4),
        Group("prompts", Periodic(0.2), 300, 1, num_requests=60),
    )
    never = load_settings({"decode": {"rest_share": 0.0}})
    resting, busy = (run(costs, Groups(groups, 0), settings=settings) for settings in (Settings(), never))
    ttft_s = [
        statistics.fmean(request.ttft_s for request in one.requests if request.group == "prompts")
        for one in (resting, busy)
    ]
    ends_s = [
        max(request.last_token_s for request in one.requests if request.group == "streams") for one in (resting, busy)
    ]
    assert ttft_s[0] < ttft_s[1] and ends_s[0] > ends_s[1]


@pytest.mark.parametrize(
    ("num_streams", "ttft_s"),
    [
        pytest.param(2, 0.08, id="two streams: half of the time on both cores"),
        pytest.param(1, 0.06, id="as many prompts as streams: all of the time"),
    ],
)
def test_while_a_decode_worker_rests_a_prompt_has_every_core(num_streams: int, ttft_s: float) -> None:
    """Steps of 4 ms and rests: for a prompt that takes 0.06 s on both cores and 0.12 on one, however fresh the stamp of
    the step."""
    costs = costs_of(flat(0.06, (1, 2)), flat(0.002, (1, 2)), cores=2)
    groups = (
        Group("streams", Concurrency(num_streams), 50, 2000, num_requests=num_streams),
        Group("prompts", Periodic(0.4), 100, 1, num_requests=4),
    )
    requests = run(costs, Groups(groups, 0)).requests
    for one in (one for one in requests if one.group == "prompts"):
        assert one.ttft_s == pytest.approx(ttft_s, rel=0.1)


def test_what_was_pulled_makes_room_for_the_next_prompt() -> None:
    """A prefill worker with blocks for one prompt."""
    simulated = run(costs_of(flat(0.1), flat(0.01), prefill_blocks=10), At(*[(0.0, 100, 5)] * 20))
    assert all(request.num_output == 5 for request in simulated.requests)
    assert simulated.duration_s == pytest.approx(20 * 0.1 + 4 * 0.01, abs=0.05)


def test_who_finds_no_blocks_is_prefilled_again_and_loses_no_token() -> None:
    load = At(*[(0.0, 60, 100)] * 6)
    simulated = run(costs_of(flat(0.01), flat(0.01), decode_blocks=24), load)
    assert simulated.num_preempted > 0
    assert all(request.num_output == 100 for request in simulated.requests)


def test_what_nobody_pulls_stops_prefill() -> None:
    """max_ahead offers and a step's worth: the rest stays in the queue until a place in the batch is free."""
    settings = load_settings({"prefill": {"max_ahead": 2}, "decode": {"max_running": 1}})
    simulated = run(costs_of(flat(0.1), flat(1.0)), At(*[(0.0, 100, 11)] * 6), settings=settings)
    first_s = sorted(request.first_token_s for request in simulated.requests)
    assert first_s[2] < 1.0 and first_s[-1] > 20.0


def test_a_closed_loop_has_so_many_in_flight_and_no_more() -> None:
    group = Group("all", Concurrency(3), 100, 20, num_requests=30)
    requests = run(REAL, Groups((group,), 0)).requests
    assert len(requests) == 30
    edges = sorted([(one.arrival_s, 1) for one in requests] + [(one.last_token_s, -1) for one in requests])
    present, most = 0, 0
    for _, change in edges:
        present += change
        most = max(most, present)
    assert most == 3


def test_a_request_that_no_worker_can_hold_is_named() -> None:
    with pytest.raises(ConfigError, match=r"1000 \+ 10 tokens.*at most 160"):
        run(costs_of(flat(0.1), flat(0.1), decode_blocks=10), At((0.0, 1000, 10)))


def test_the_same_load_gives_the_same_figures() -> None:
    first, second = (run(SHARED, mixed(3.0, 60)) for _ in range(2))
    assert [one.last_token_s for one in first.requests] == [one.last_token_s for one in second.requests]
