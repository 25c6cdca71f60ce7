"""What steps cost: measured points of prefill and decode steps, and what lies around the steps, as one JSON file.

A prefill step costs by its tokens and the context before them, a decode step by its batch and the mean context; each by
the threads that compute it, where workers share a host's cores. Between points it is linear. Pure but for its file.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import groupby, pairwise
from pathlib import Path

import msgspec

from errors import ConfigError

FORMAT_VERSION = 1
LEAST_S = 1e-6  # no step is free, however far a line is drawn out


class Point(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A step that was measured: `size` prompt tokens (prefill) or sequences (decode), `context` tokens before each."""

    threads: int  # that computed it while neighbours kept the host's other cores busy; 0: a device of its own
    size: int
    context: int
    seconds: float


class Way(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a request and its tokens take outside of steps, seconds; and what steps do to each other."""

    front_s: float = 0.0  # from the client to the prefill queue and from the first token to the client, together
    handoff_s: float = 0.0  # from the first token to the end of an empty pull
    handoff_token_s: float = 0.0  # more for each prompt token
    prefill_gap_s: float = 0.0  # between two prefill steps
    decode_gap_s: float = 0.0  # between two decode steps
    token_s: float = 0.0  # what each token adds to its decode step: publishing, relaying and reading it on these cores
    # Times as long as its threads say that a step takes while others come to and leave its host's cores (SETTLE_S of
    # host.py): who is put off a core in the middle of a section holds up the whole step.
    shared_stretch: float = 1.0


class StepCosts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model on one kind of host, and the settings that its steps were measured with."""

    format_version: int
    model: str
    machine: str
    cores: int  # that the workers of a host share; 0: every worker has a device of its own
    token_budget: int  # of a prefill step
    block_size: int
    prefill_blocks: int  # KV blocks of a worker
    decode_blocks: int
    prefill: tuple[Point, ...]
    decode: tuple[Point, ...]
    way: Way = Way()


def read_costs(path: Path) -> StepCosts:
    """Raises ConfigError that names the file and what is wrong with it."""
    try:
        costs = msgspec.json.decode(path.read_bytes(), type=StepCosts)
    except OSError as error:
        raise ConfigError(f"--costs {path}: {error.strerror}; `pdq plan measure` writes one") from None
    except msgspec.DecodeError as error:
        raise ConfigError(f"--costs {path}: {error}; `pdq plan measure` writes one") from None
    if costs.format_version != FORMAT_VERSION:
        raise ConfigError(f"--costs {path}: format_version {costs.format_version}, this pdq reads {FORMAT_VERSION}")
    check_costs(costs, f"--costs {path}")
    return costs


def write_costs(costs: StepCosts, path: Path) -> None:
    """Raises ConfigError when the file cannot be written."""
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(costs), indent=1) + b"\n")
    except OSError as error:
        raise ConfigError(f"--costs {path}: {error.strerror}") from None


def check_costs(costs: StepCosts, where: str) -> None:
    """Raises ConfigError that begins with `where` on figures that no simulation can use."""
    for name in ("token_budget", "block_size", "prefill_blocks", "decode_blocks"):
        if getattr(costs, name) < 1:
            raise ConfigError(f"{where}: {name} = {getattr(costs, name)} must be at least 1")
    if costs.cores < 0:
        raise ConfigError(f"{where}: cores = {costs.cores} must be 0 (a device of its own) or more")
    for name in Way.__struct_fields__:
        if not 0 <= getattr(costs.way, name) < float("inf"):
            raise ConfigError(f"{where}: way.{name} = {getattr(costs.way, name)} must be at least 0")
    if costs.way.shared_stretch < 1:
        raise ConfigError(f"{where}: way.shared_stretch = {costs.way.shared_stretch} must be at least 1")
    for name, points in (("prefill", costs.prefill), ("decode", costs.decode)):
        if not points:
            raise ConfigError(f"{where}: {name} has no points")
        for point in points:
            if point.size < 1 or point.context < 0 or not 0 < point.seconds < float("inf"):
                raise ConfigError(f"{where}: {name} has {point}; size and seconds must be above 0, context at least 0")
            if (point.threads < 1) != (costs.cores == 0):
                raise ConfigError(f"{where}: {name} has threads = {point.threads} where cores = {costs.cores}")


Row = tuple[int, list[tuple[int, float]]]  # size, [(context, seconds)]


class Surface:
    """Seconds of a step by its size and context, and by the threads that it gets."""

    def __init__(self, points: Sequence[Point]) -> None:
        """points: at least one; not every pair of size and context need be there."""
        ordered = sorted(points, key=lambda point: (point.threads, point.size, point.context))
        self._threads: list[int] = []
        self._sheets: list[list[Row]] = []  # by threads
        for threads, sheet in groupby(ordered, key=lambda point: point.threads):
            self._threads.append(threads)
            rows = groupby(sheet, key=lambda point: point.size)
            self._sheets.append(_sloped([(size, [(one.context, one.seconds) for one in row]) for size, row in rows]))

    def at(self, size: float, context: float) -> "Cost":
        """What such a step costs on any number of threads."""
        return Cost(self._threads, [_on_sheet(sheet, size, context) for sheet in self._sheets])


class Cost:
    """Of one step: seconds by threads. Between measured numbers its speed is linear, below the least it is in
    proportion, above the most it grows no more."""

    __slots__ = ("_seconds", "_threads")

    def __init__(self, threads: Sequence[int], seconds: Sequence[float]) -> None:
        self._threads, self._seconds = threads, seconds

    def seconds(self, threads: float) -> float:
        """On so many threads; of a device of its own it is always the same."""
        first = self._threads[0]
        if first == 0 or threads == first:
            return self._seconds[0]
        if threads < first:
            return self._seconds[0] * first / threads
        if threads >= self._threads[-1]:
            return self._seconds[-1]
        return 1 / _line(
            [(each, 1 / seconds) for each, seconds in zip(self._threads, self._seconds, strict=True)], threads
        )


def _sloped(rows: list[Row]) -> list[Row]:
    """Rows with one context only, for want of memory, get the slope of the row before: a size's share of attention."""
    for (size, points), (larger, alone) in pairwise(rows):
        if len(alone) == 1 and len(points) > 1:
            (first, low_s), (last, high_s) = points[0], points[-1]
            context, seconds = alone[0]
            alone.append((context + last - first, seconds + (high_s - low_s) * larger / size))
    return rows


def _on_sheet(sheet: Sequence[Row], size: float, context: float) -> float:
    near = _neighbours([row[0] for row in sheet], size)
    row = [(sheet[index][0], _line(sheet[index][1], context)) for index in near]
    return max(_line(row, size), LEAST_S)


def _line(points: Sequence[tuple[float, float]], x: float) -> float:
    """Through the two points around x, or the last two beyond the ends; one point alone is level."""
    if len(points) == 1:
        return points[0][1]
    left, right = (points[index] for index in _neighbours([each for each, _ in points], x))
    return left[1] + (right[1] - left[1]) * (x - left[0]) / (right[0] - left[0])


def _neighbours(ascending: Sequence[float], x: float) -> list[int]:
    """The places of the two values around x, or the last two beyond the ends."""
    if len(ascending) == 1:
        return [0]
    right = min(max(bisect_right(ascending, x), 1), len(ascending) - 1)
    return [right - 1, right]
