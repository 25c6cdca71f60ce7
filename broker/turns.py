"""Whose turn it is: which class a worker looks at first for each job that it takes. Pure."""

from messages.request import Priority


def first_choices(num_taken: int, count: int, turn_every: int) -> list[Priority]:
    """The class to look at first for each of the next `count` jobs, after `num_taken` were taken.

    Where it is empty, the most urgent class that is not comes in. High goes first, but of `turn_every` jobs in a row
    one is low's and one is normal's turn: however many more urgent ones there are, a class that waits gets its share.
    """
    return [_first_choice((num_taken + place) % turn_every, turn_every) for place in range(count)]


def _first_choice(turn: int, turn_every: int) -> Priority:
    if turn == turn_every - 1:
        return Priority.LOW
    return Priority.NORMAL if turn == turn_every // 2 - 1 else Priority.HIGH
