"""A mean of late."""

import pytest

from broker.rolling import Rolling


def test_a_mean_weighs_by_weight_and_forgets() -> None:
    rate = Rolling(10.0)
    assert rate.value == 0
    rate.note(300, 1.0)
    assert rate.value == 300
    rate.note(100, 0.0)  # came for nothing
    assert rate.value == 400
    for _ in range(100):
        rate.note(50, 1.0)
    assert rate.value == pytest.approx(50, rel=0.01)
