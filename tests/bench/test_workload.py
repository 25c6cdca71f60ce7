"""Presets, options and arrivals. Nothing here waits."""

from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.prompts import PromptSource, prompt_source
from bench.workload import (
    PRESETS,
    Concurrency,
    Group,
    Overrides,
    Periodic,
    Poisson,
    arrival_times,
    build_workload,
    warmup_of,
)
from errors import ConfigError


def poisson(rate_rps: float, num_requests: int | None = None, duration_s: float | None = None) -> Group:
    return Group("all", Poisson(rate_rps), 10, 10, num_requests, duration_s)


def test_poisson_arrivals_are_the_seeds() -> None:
    group = poisson(4.0, num_requests=50)
    assert list(arrival_times(group, 7)) == list(arrival_times(group, 7))
    assert list(arrival_times(group, 7)) != list(arrival_times(group, 8))


def test_poisson_rate_and_spread() -> None:
    """20,000 exponential gaps: mean 1/rate within 5 standard errors, and standard deviation near the mean."""
    num, rate = 20_000, 8.0
    times = list(arrival_times(poisson(rate, num_requests=num), 1))
    gaps = [times[0], *(later - earlier for earlier, later in pairwise(times))]
    mean = sum(gaps) / num
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / num) ** 0.5
    assert mean == pytest.approx(1 / rate, rel=5 / num**0.5)
    assert deviation == pytest.approx(mean, rel=0.05)
    assert all(gap >= 0 for gap in gaps)


def test_duration_ends_arrivals() -> None:
    times = list(arrival_times(poisson(5.0, duration_s=25.0), 3))
    assert 0 < times[0] and times[-1] <= 25.0
    longer = list(arrival_times(poisson(5.0, duration_s=50.0), 3))
    assert longer[: len(times)] == times  # a longer run of the same seed begins alike
    assert list(arrival_times(poisson(5.0, num_requests=10, duration_s=25.0), 3)) == times[:10]


def test_periodic_arrivals() -> None:
    group = PRESETS["w3"].groups[1]
    times = list(arrival_times(group, 0))
    assert times[:3] == [1.0, 3.0, 5.0]
    assert len(times) == 20
    endless = Group("all", Periodic(0.5), 10, 10)
    assert list(islice(arrival_times(endless, 0), 2)) == [0.25, 0.75]


def test_presets_are_those_of_the_peers() -> None:
    shapes = {
        name: [(group.arrivals, group.prompt_tokens, group.output_tokens) for group in workload.groups]
        for name, workload in PRESETS.items()
    }
    assert shapes == {
        "w1": [(Concurrency(1), 128, 128)],
        "w2": [(Concurrency(16), 128, 128)],
        "w3": [(Concurrency(4), 64, 256), (Periodic(2.0), 1500, 8)],
        "w4": [(Poisson(4.0), 256, 64)],
    }


def test_options_change_a_preset() -> None:
    (group,) = build_workload("w4", Overrides(request_rate=6.0, duration_s=10.0, output_tokens=5)).groups
    assert group == Group("all", Poisson(6.0), 256, 5, duration_s=10.0)
    (group,) = build_workload("w4", Overrides(num_requests=9)).groups
    assert (group.num_requests, group.duration_s) == (9, None)
    (group,) = build_workload(None, Overrides(concurrency=3, shared_prefix_tokens=64)).groups
    assert (group.arrivals, group.shared_prefix_tokens) == (Concurrency(3), 64)
    assert [group.duration_s for group in build_workload("w3", Overrides(duration_s=6.0)).groups] == [6.0, 6.0]


@pytest.mark.parametrize(
    ("preset", "overrides", "named"),
    [
        (None, Overrides(concurrency=1, request_rate=1.0), "--request-rate"),
        ("w3", Overrides(prompt_tokens=10), "--prompt-tokens"),
        ("w1", Overrides(shared_prefix_tokens=128), "--shared-prefix-tokens 128"),
    ],
)
def test_options_that_do_not_fit_are_refused(preset: str | None, overrides: Overrides, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        build_workload(preset, overrides)


def test_warm_up_has_other_prompts() -> None:
    workload = build_workload("w2", Overrides())
    (warmup,) = warmup_of(workload, 2).groups
    assert (warmup.arrivals, warmup.num_requests) == (Concurrency(2), 2)
    source = PromptSource(5)
    assert source.prompt(warmup.name, 0, 128) != source.prompt("all", 0, 128)


@given(st.integers(1, 300), st.integers(0, 2**31), st.data())
def test_prompts_are_exact_and_share_only_the_prefix(num_tokens: int, seed: int, data: st.DataObject) -> None:
    shared = data.draw(st.integers(0, num_tokens - 1))
    source = PromptSource(seed, 100, 30000)
    first, second = (source.prompt("all", index, num_tokens, shared) for index in (0, 1))
    assert len(first) == len(second) == num_tokens
    assert all(100 <= token_id <= 30000 for token_id in first)
    assert first[:shared] == second[:shared]
    assert first == source.prompt("all", 0, num_tokens, shared)


def test_prompts_of_a_run_are_distinct_from_the_first_block_on() -> None:
    source = PromptSource(0)
    starts = {tuple(source.prompt("all", index, 128)[:16]) for index in range(500)}
    assert len(starts) == 500


def test_runs_without_a_seed_have_other_prompts() -> None:
    assert prompt_source(None, 1000, 30000).seed != prompt_source(None, 1000, 30000).seed
    assert prompt_source(3, 1000, 30000).seed == 3
    with pytest.raises(ConfigError, match="--min-token-id 9"):
        prompt_source(None, 9, 9)
