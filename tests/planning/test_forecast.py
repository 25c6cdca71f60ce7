"""Which cluster is enough, and in which order they are tried."""

import random

from bench.report import Limits
from planning.cluster import Size
from planning.costs import Way
from planning.forecast import Bounds, Objective, nearest, recommended, search, sizes_by_total
from settings.loading import Settings
from tests.planning.simple_costs import At, costs_of, per_token

COSTS = costs_of(per_token(0.001), per_token(0.002), Way(0.01, 0.005, 1e-6, 0.001, 0.001, 1e-4))


def load() -> At:
    draws = random.Random(0)
    return At(*[(number * 0.1, draws.randint(100, 400), draws.randint(10, 60)) for number in range(150)])


def tried(objective: Objective, bounds: Bounds) -> tuple[list[Size], list[Size]]:
    """(sizes that were simulated, the recommended one or none)."""
    forecasts = search(COSTS, Settings(), load, objective, bounds, lambda size: None, lambda request: None)
    best = recommended(forecasts)
    return [one.size for one in forecasts], [] if best is None else [best.size]


def test_fewer_workers_are_tried_before_more_and_each_once() -> None:
    totals = list(sizes_by_total(Bounds(3, 2)))
    assert totals == [
        [Size(1, 1)],
        [Size(1, 2), Size(2, 1)],
        [Size(2, 2), Size(3, 1)],
        [Size(3, 2)],
    ]


def test_the_smallest_that_keeps_the_limits_is_named_and_nothing_larger_is_tried() -> None:
    sizes, best = tried(Objective(Limits(800, 40), 0.9), Bounds(8, 8))
    assert len(best) == 1 and best[0] in sizes
    total = best[0].num_prefill + best[0].num_decode
    assert total > 2, "the load must not be served by the smallest"
    assert max(size.num_prefill + size.num_decode for size in sizes) == total


def test_a_promise_to_nobody_is_kept_by_the_smallest() -> None:
    assert tried(Objective(Limits(1, 1), 0.0), Bounds(8, 8))[1] == [Size(1, 1)]


def test_where_none_is_enough_all_are_tried_and_the_nearest_is_known() -> None:
    sizes, best = tried(Objective(Limits(1, 1), 0.9), Bounds(3, 2))
    assert best == [] and len(sizes) == 6


def test_figures_are_those_of_the_bench() -> None:
    """Goodput counts who met both limits; attainment is their share."""
    forecasts = search(
        COSTS, Settings(), load, Objective(Limits(2000, 40), 1.0), Bounds(1, 1), lambda size: None, lambda request: None
    )
    (one,) = forecasts
    assert one.num_requests == 150 and one.ttft_ms.count == 150
    assert one.goodput_rps == round(one.attainment * 150) / one.duration_s
    assert 0 < one.decode_use <= 1 and 0 < one.prefill_use <= 1
    assert nearest(forecasts) is one
