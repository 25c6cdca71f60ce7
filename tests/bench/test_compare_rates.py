"""The comparison: which rates are tried, with which prompts."""

import pytest

from bench.compare.plan import Plan, chosen
from bench.compare.rate_search import first_rung, ladder, next_rung, real_rate
from bench.workload import Group, Poisson

W4 = Group("all", Poisson(4.0), 256, 64, duration_s=25.0)


def search(limit: int, num_rungs: int, first: int) -> list[int]:
    """The rungs that are tried where all below `limit` are borne."""
    borne: dict[int, bool] = {}
    while (rung := next_rung(num_rungs, borne, first)) is not None:
        assert rung not in borne
        borne[rung] = rung < limit
    return list(borne)


@pytest.mark.parametrize(("limit", "tried"), [(0, [2, 1, 0]), (2, [2, 1]), (3, [2, 3]), (4, [2, 3, 4]), (5, [2, 3, 4])])
def test_the_search_ends_between_a_borne_rate_and_a_failed_one(limit: int, tried: list[int]) -> None:
    assert search(limit, 5, 2) == tried


def test_a_failure_below_a_success_does_not_end_the_search() -> None:
    assert next_rung(5, {1: False, 2: True}, 2) == 3


def test_the_first_rate_is_the_highest_below_the_guess() -> None:
    rates = [1.0, 2.0, 4.0]
    assert [first_rung(rates, guess) for guess in (0.5, 1.0, 3.9, 9.0, None)] == [0, 0, 1, 2, 1]


def test_the_ladder_rises_in_what_is_really_sent() -> None:
    rates = [real_rate(group, 0) for group in ladder(W4, (5, 4, 1, 2, 8, 8), 0)]
    assert rates == sorted(set(rates))
    assert all(0.5 < rate < 10 for rate in rates)


def test_every_attempt_has_prompts_of_its_own_and_every_server_the_same() -> None:
    plan = Plan((), (), 2, False, 0, 7)
    seeds = [
        plan.prompt_seed_of(name, number, round_) for name in ("w1", "w4") for number in (0, 1) for round_ in (0, 1)
    ]
    assert len(set(seeds)) == 8
    assert seeds == [
        Plan((), (), 1, True, 3, 7).prompt_seed_of(name, number, round_)
        for name in ("w1", "w4")
        for number in (0, 1)
        for round_ in (0, 1)
    ]


def test_a_quick_run_keeps_the_shapes() -> None:
    for whole, short in zip(chosen(["w1", "w3"], False), chosen(["w1", "w3"], True), strict=True):
        for group, shortened in zip(whole.groups, short.groups, strict=True):
            assert (group.prompt_tokens, group.arrivals) == (shortened.prompt_tokens, shortened.arrivals)
    assert chosen(["w1"], True)[0].groups[0].num_requests == 2
