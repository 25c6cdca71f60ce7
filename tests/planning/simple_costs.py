"""Cost files that a test can compute with in its head."""

from collections.abc import Iterator
from typing import Any

import msgspec

from planning.costs import FORMAT_VERSION, Point, StepCosts, Way
from planning.load import Request


def flat(seconds: float, threads: tuple[int, ...] = (0,)) -> tuple[Point, ...]:
    """A step takes `seconds` on the most threads whatever is in it, and in proportion longer on fewer."""
    most = threads[-1]
    return tuple(Point(each, 1, 0, seconds * (most / each if each else 1)) for each in threads)


def per_token(seconds: float) -> tuple[Point, ...]:
    """A step takes `seconds` for each token (or sequence)."""
    return (Point(0, 1, 0, seconds), Point(0, 1001, 0, 1001 * seconds))


def costs_of(
    prefill: tuple[Point, ...], decode: tuple[Point, ...], way: Way | None = None, **changes: Any
) -> StepCosts:
    costs = StepCosts(
        format_version=FORMAT_VERSION,
        model="none",
        machine="none",
        cores=0,
        token_budget=100,
        block_size=16,
        prefill_blocks=10_000,
        decode_blocks=10_000,
        prefill=prefill,
        decode=decode,
        way=way or Way(),
    )
    return msgspec.structs.replace(costs, **changes)


class At:
    """A load of given requests: (arrival_s, prompt_tokens, output_tokens)."""

    def __init__(self, *requests: tuple[float, int, int]) -> None:
        self.requests = requests

    def start(self) -> Iterator[Request]:
        return iter([Request(*one) for one in self.requests])

    def after(self, ended: Request) -> Request | None:
        return None
