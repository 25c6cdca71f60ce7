"""The figures against hand-computed ones."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.record import RequestRecord
from bench.report import Limits, distribution_ms, meets_limits, percentile, summarize
from bench.workload import Concurrency, Group, Poisson

GROUP = Group("all", Concurrency(2), prompt_tokens=10, output_tokens=3, num_requests=3)
LIMITS = Limits(ttft_ms=1000, tpot_ms=60)


def record(sent_s: float, arrivals_s: list[float], end_s: float, kind: str = "", group: str = "all") -> RequestRecord:
    made = RequestRecord(group, 0, 10, 3, sent_s, arrivals_s=arrivals_s, end_s=end_s)
    if kind:
        made.fail(kind, f"{kind} at {sent_s}")
    return made


@given(
    st.lists(st.floats(min_value=0, max_value=1e6, allow_nan=False), min_size=1, max_size=200),
    st.floats(min_value=0, max_value=100),
)
def test_percentile_is_numpys(values: list[float], percent: float) -> None:
    assert percentile(sorted(values), percent) == pytest.approx(
        float(np.percentile(values, percent)), rel=1e-9, abs=1e-9
    )


@given(st.lists(st.floats(min_value=0, max_value=1e3, allow_nan=False), min_size=1, max_size=50))
def test_distribution_is_numpys(values_s: list[float]) -> None:
    found = distribution_ms(values_s)
    values_ms = np.array(values_s) * 1000
    wanted = [values_ms.mean(), *np.percentile(values_ms, [50, 90, 99]), values_ms.max()]
    assert [found.mean, found.p50, found.p90, found.p99, found.max] == pytest.approx(wanted, rel=1e-9, abs=1e-9)
    assert found.count == len(values_s)


def test_no_samples_give_no_figure() -> None:
    found = distribution_ms([])
    assert found.count == 0
    assert found.mean is found.p50 is found.p99 is None


def test_two_requests_by_hand() -> None:
    start_s = 100.0
    first = record(100.0, [100.5, 100.6, 100.8], 100.8)  # TTFT 500, gaps 100 and 200, TPOT 150, E2E 800
    second = record(101.0, [101.1, 101.15, 101.2], 102.0)  # TTFT 100, gaps 50 and 50, TPOT 50, E2E 200
    found = summarize(GROUP, [first, second], start_s, LIMITS)
    assert found.duration_s == pytest.approx(2.0)  # to the last END, not the last token
    assert found.ttft_ms.mean == pytest.approx(300)
    assert found.ttft_ms.p50 == pytest.approx(300)
    assert found.ttft_ms.p90 == pytest.approx(460)
    assert found.itl_ms.count == 4
    assert found.itl_ms.mean == pytest.approx(100)
    assert found.itl_ms.p50 == pytest.approx(75)
    assert found.itl_ms.max == pytest.approx(200)
    assert found.tpot_ms.mean == pytest.approx(100)
    assert found.e2e_ms.max == pytest.approx(800)
    assert found.output_tokens == 6
    assert found.output_tokens_per_s == pytest.approx(3.0)
    assert found.total_tokens_per_s == pytest.approx(13.0)  # 6 out + 20 in over 2 s
    assert found.requests_per_s == pytest.approx(1.0)
    assert found.num_met_limits == 1  # the first one's TPOT is 150 ms
    assert found.goodput_rps == pytest.approx(0.5)
    assert found.attainment == pytest.approx(0.5)


def test_failures_are_listed_and_count_for_nothing_but_the_share() -> None:
    good = record(0.0, [0.1, 0.12, 0.14], 0.2)
    cut = record(0.0, [0.1, 0.2], 4.0, "cut_stream")
    busy = [record(1.0, [], 1.5, "http_503"), record(2.0, [], 2.5, "http_503")]
    found = summarize(GROUP, [good, busy[0], cut, busy[1]], 0.0, LIMITS)
    assert (found.num_sent, found.num_succeeded) == (4, 1)
    assert [(failure.kind, failure.count, failure.example) for failure in found.failures] == [
        ("http_503", 2, "http_503 at 1.0"),
        ("cut_stream", 1, "cut_stream at 0.0"),
    ]
    assert found.output_tokens == 3
    assert found.failed_output_tokens == 2
    assert found.duration_s == pytest.approx(4.0)  # the failed request's time is not taken out
    assert found.output_tokens_per_s == pytest.approx(0.75)
    assert found.ttft_ms.count == 1
    assert found.itl_ms.count == 2
    assert found.attainment == pytest.approx(0.25)
    assert found.goodput_rps == pytest.approx(0.25)


def test_only_failures_give_zero_rates_and_no_latencies() -> None:
    found = summarize(GROUP, [record(0.0, [], 0.0, "connection_refused")], 0.0, LIMITS)
    assert found.output_tokens_per_s == found.goodput_rps == found.requests_per_s == 0.0
    assert found.attainment == 0.0
    assert found.ttft_ms.p50 is None


def test_limits_are_inclusive_and_both_needed() -> None:
    assert meets_limits(record(0.0, [1.0, 1.06], 2.0), Limits(1000, 60.0001))
    assert meets_limits(record(0.0, [1.0], 2.0), Limits(1000, 0))  # one token has no TPOT
    assert not meets_limits(record(0.0, [1.001, 1.002], 2.0), Limits(1000, 60))
    assert not meets_limits(record(0.0, [0.5, 0.6], 2.0), Limits(1000, 60))
    assert not meets_limits(record(0.0, [0.1, 0.11], 2.0, "short_output"), Limits(1000, 60))


def test_tpot_hides_a_stall_that_itl_shows() -> None:
    stalled = record(0.0, [0.0, 0.001, 0.002, 1.0], 1.0)
    found = summarize(GROUP, [stalled], 0.0, LIMITS)
    assert found.tpot_ms.max == pytest.approx(1000 / 3)
    assert found.itl_ms.max == pytest.approx(998)


def test_offered_rate_is_over_the_window_not_the_drain() -> None:
    records = [record(float(second), [second + 9.0], second + 9.0) for second in range(5)]
    window = Group("all", Poisson(1.0), 10, 1, duration_s=10.0)
    assert summarize(window, records, 0.0, LIMITS).offered_rps == pytest.approx(0.5)
    counted = Group("all", Poisson(1.0), 10, 1, num_requests=5)
    assert summarize(counted, records, 0.0, LIMITS).offered_rps == pytest.approx(1.0)
    assert summarize(GROUP, records, 0.0, LIMITS).offered_rps is None


def test_groups_are_apart() -> None:
    records = [record(0.0, [0.1, 0.2], 1.0, group="steady"), record(0.0, [0.5], 8.0, group="long")]
    steady = Group("steady", Concurrency(1), 10, 2, duration_s=1.0)
    found = summarize(steady, records, 0.0, LIMITS)
    assert found.num_sent == 1
    assert found.duration_s == pytest.approx(1.0)
