"""The line through what prefill steps took."""

import pytest

from decode_worker.prefill_pace import PrefillPace


def measured(*points: tuple[int, float]) -> PrefillPace:
    pace = PrefillPace()
    for num_tokens, seconds in points:
        pace.note(num_tokens, seconds)
    return pace


def test_two_lengths_tell_the_fixed_part_from_the_part_per_token() -> None:
    pace = measured((32, 0.052), (128, 0.148))  # 20 ms and 1 ms per token
    assert pace.line == pytest.approx((0.020, 0.001))
    assert pace.seconds(64) == pytest.approx(0.084)
    assert pace.tokens_within(0.050) == 30
    assert pace.tokens_within(0.019) == 0


def test_one_length_says_nothing_of_a_fixed_part() -> None:
    assert measured((64, 0.064), (64, 0.064)).line == pytest.approx((0.0, 0.001))


def test_noise_gives_no_negative_part() -> None:
    falling = measured((32, 0.2), (128, 0.1)).line
    steep = measured((32, 0.001), (128, 0.4)).line
    assert falling[0] >= 0 and falling[1] > 0
    assert steep[0] >= 0 and steep[1] > 0


def test_late_measurements_weigh_more() -> None:
    pace = measured(*[(32, 0.032), (128, 0.128)] * 20, *[(32, 0.064), (128, 0.256)] * 20)
    assert pace.line[1] == pytest.approx(0.002, rel=0.05)


def test_without_a_measurement_it_knows_nothing() -> None:
    assert not PrefillPace().is_known
    assert measured((1, 0.1)).is_known
