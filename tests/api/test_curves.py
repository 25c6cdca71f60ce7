"""The last minutes as curves."""

import pytest

from api.curves import MINUTE_POINTS, NUM_POINTS, WINDOW_POINTS, Curves, percentile_ms
from api.meters import ApiMeters


def test_a_percentile_lies_within_its_bucket() -> None:
    bounds = (0.1, 0.2, 0.4)
    assert percentile_ms(bounds, [0, 0, 0, 0], 0.5) is None
    assert percentile_ms(bounds, [4, 0, 0, 0], 0.5) == 50
    assert percentile_ms(bounds, [1, 1, 2, 0], 0.5) == 200
    assert percentile_ms(bounds, [1, 1, 2, 0], 0.75) == pytest.approx(300)
    assert percentile_ms(bounds, [0, 0, 0, 3], 0.5) == 400  # beyond the last bound: at least that


def test_a_point_is_of_the_window_and_not_of_all_time() -> None:
    meters = ApiMeters()
    curves = Curves(meters)
    for _ in range(100):
        meters.first_token.observe(0.5)
    curves.sample(2000, 3, 1)
    first = curves.points()[-1].ttft_p50_ms
    assert first is not None and first > 250
    for number in range(WINDOW_POINTS):
        curves.sample(4000 + 2000 * number, 0, 0)
    assert curves.points()[-1].ttft_p50_ms is None
    meters.first_token.observe(0.004)
    curves.sample(20_000, 0, 0)
    last = curves.points()[-1].ttft_p50_ms
    assert last is not None and last <= 5


def test_tokens_per_second_go_by_the_time_that_passed() -> None:
    meters = ApiMeters()
    curves = Curves(meters)
    curves.sample(1000, None, None)
    meters.first_token.observe(0.1)
    meters.inter_token.observe(0.1, 19)
    curves.sample(5000, None, None)
    assert curves.points()[-1].tokens_per_s == 5
    assert curves.points()[-1].num_waiting is None


def test_what_is_kept_is_bounded() -> None:
    curves = Curves(ApiMeters())
    for number in range(NUM_POINTS + 9):
        curves.sample(number, 0, 0)
    assert len(curves.points()) == NUM_POINTS and curves.points()[0].at_ms == 9


def test_the_last_minute_is_a_minute() -> None:
    meters = ApiMeters()
    curves = Curves(meters)
    assert curves.last_minute().ttft_p50_ms is None and curves.last_minute().tokens_per_s == 0
    for _ in range(10):
        meters.first_token.observe(0.5)
    meters.inter_token.observe(0.009, 50)
    curves.sample(2000, 0, 0)
    for number in range(1, MINUTE_POINTS):
        curves.sample(2000 + 2000 * number, 0, 0)
    said = curves.last_minute()
    assert said.num_first_tokens == 10 and said.tokens_per_s == 1
    assert said.ttft_p99_ms is not None and 250 < said.ttft_p99_ms <= 500
    assert said.itl_p50_ms is not None and 5 < said.itl_p50_ms <= 10
    curves.sample(2000 + 2000 * MINUTE_POINTS, 0, 0)
    assert curves.last_minute().num_first_tokens == 0
