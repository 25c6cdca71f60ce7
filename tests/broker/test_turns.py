"""Whose turn it is: urgent first, and nobody is passed over for ever."""

from hypothesis import given
from hypothesis import strategies as st

from broker.turns import first_choices
from messages.request import Priority

HIGH, NORMAL, LOW = Priority


def test_of_eight_jobs_six_are_the_most_urgent() -> None:
    assert first_choices(0, 8, turn_every=8) == [HIGH, HIGH, HIGH, NORMAL, HIGH, HIGH, HIGH, LOW]


@given(st.integers(0, 1000), st.integers(3, 50))
def test_each_class_has_its_turn_among_any_so_many(num_taken: int, turn_every: int) -> None:
    turns = first_choices(num_taken, turn_every, turn_every)
    assert (turns.count(NORMAL), turns.count(LOW)) == (1, 1)
    # However the jobs are split over takes, the turns are the same.
    assert turns == [first_choices(num_taken + place, 1, turn_every)[0] for place in range(turn_every)]
