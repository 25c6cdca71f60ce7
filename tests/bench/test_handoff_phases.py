"""What the handoff bench makes of marks: phases that add up, and steps with and without an arrival beside them."""

from pathlib import Path

import pytest

from bench.handoff.marks import Mark, Marks, read_marks
from bench.handoff.phases import PHASES, between_steps_us, handoffs, quantile, step_times

MS = 1_000_000
PREFILL = [
    Mark("prefill", 0, 10 * MS, amount=500),
    Mark("first_token", 10 * MS, 10 * MS, "a"),
    Mark("offer", 11 * MS, 12 * MS, "a"),
    Mark("first_token", 10 * MS, 10 * MS, "b"),  # which never came to decode
]
DECODE = [
    Mark("step", 1 * MS, 8 * MS, amount=2),
    Mark("step", 9 * MS, 19 * MS, amount=2),
    Mark("step", 21 * MS, 28 * MS, amount=2),
    Mark("step", 29 * MS, 36 * MS, amount=3),
    Mark("step", 37 * MS, 44 * MS, amount=3),
    Mark("pull", 15 * MS, 18 * MS),
    Mark("take", 14 * MS, 22 * MS, "a"),
    Mark("join", 19 * MS, 20 * MS, "a"),
]


def test_the_phases_of_a_handoff_are_its_whole() -> None:
    found = handoffs(PREFILL, DECODE)
    assert found.keys() == {"a"}
    assert found["a"].phases_ms == dict(zip(PHASES, (2.0, 2.0, 1.0, 3.0, 2.0), strict=True))
    assert found["a"].total_ms == 10.0


def test_steps_are_told_apart_by_what_goes_on_beside_them() -> None:
    times = step_times(PREFILL, DECODE, 2)
    assert times.with_arrival_ms == [], "a prompt was computed beside those"
    assert times.without_ms == [8.0, 8.0]
    times = step_times(PREFILL[1:], DECODE, 2)
    assert times.with_arrival_ms == [12.0]
    assert times.without_ms == [8.0, 8.0, 8.0]
    assert times.delay_ms(0.5) == 4.0


def test_the_time_between_computations_is_of_one_batch_size() -> None:
    assert between_steps_us(DECODE, 2) == [1000.0, 2000.0]
    assert between_steps_us(DECODE, 3) == [1000.0]


@pytest.mark.parametrize(("share", "expected"), [(0.5, 2.0), (0.75, 3.0), (0.99, 4.0), (1.0, 4.0)])
def test_a_quantile_is_a_value_that_was_seen(share: float, expected: float) -> None:
    assert quantile([4.0, 1.0, 3.0, 2.0], share) == expected


def test_marks_come_from_the_methods_they_are_put_around(tmp_path: Path) -> None:
    class Worker:
        def compute(self, amount: int) -> int:
            if amount < 0:
                raise ValueError
            return amount

    marks = Marks(tmp_path / "marks")
    marks.around(Worker, "compute", "step", lambda _, amount: ("r", amount))
    assert Worker().compute(3) == 3
    with pytest.raises(ValueError):
        Worker().compute(-1)
    marks.save()
    first, second = read_marks(tmp_path / "marks")
    assert (first.name, first.request_id, first.amount, second.amount) == ("step", "r", 3, -1)
    assert first.began_ns <= first.ended_ns <= second.began_ns
