"""A document -> the rows of its table. Pure: medians over rounds, the best peer, ratios.

A round in which others used the cores counts only where a figure has no clean one, and is then marked. The ratio is
pdq's figure / the best peer's of the same precision, whether more or less of it is better.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from bench.compare.document import DEMO, HALF_BILLION, Attempt, Column, Document
from bench.compare.rate_search import WANTED_ATTAINMENT


@dataclass(frozen=True, slots=True)
class Value:
    """A figure of one server."""

    number: float
    note: str = ""  # what a reader must know of it


@dataclass(frozen=True, slots=True)
class Figure:
    """A row's name and where its values come from."""

    name: str
    more_is_better: bool
    of: Callable[[Document, Column], Value | None]
    model: str = DEMO


@dataclass(frozen=True, slots=True)
class Row:
    """A figure, a value per server, and pdq's ratio to the best peer by precision."""

    figure: Figure
    values: dict[str, Value | None]
    ratios: dict[str, float | None]


def rows_of(document: Document) -> list[Row]:
    """The rows that have a value."""
    rows = []
    for figure in FIGURES:
        columns = [column for column in document.columns if column.model == figure.model]
        values = {column.server: figure.of(document, column) for column in columns}
        if any(value is not None for value in values.values()):
            ratios = {weights: _ratio(columns, values, weights, figure) for weights in ("16-bit", "4-bit")}
            rows.append(Row(figure, values, ratios))
    return rows


def _ratio(columns: Sequence[Column], values: dict[str, Value | None], weights: str, figure: Figure) -> float | None:
    def numbers(is_peer: bool) -> list[float]:
        found = [values[one.server] for one in columns if one.weights == weights and one.is_peer is is_peer]
        return [value.number for value in found if value is not None]

    best: Callable[[list[float]], float] = max if figure.more_is_better else min
    ours, theirs = numbers(False), numbers(True)
    return best(ours) / best(theirs) if ours and theirs and best(theirs) else None


def _of_group(
    workload: str, group: str, pick: Callable[[Attempt, str], float | None]
) -> Callable[[Document, Column], Value | None]:
    def value(document: Document, column: Column) -> Value | None:
        attempts = [one for one in _attempts(document, column) if one.workload == workload]
        clean = [one for one in attempts if one.cpu.is_clean is not False]
        numbers = [number for one in clean or attempts if (number := pick(one, group)) is not None]
        if not numbers:
            return None
        notes = [] if clean else ["not clean"]
        summaries = [one.group(group) for one in attempts]
        failed = sum(one.num_sent - one.num_succeeded for one in summaries if one is not None)
        notes += [f"{failed} failed"] if failed else []
        return Value(median(numbers), ", ".join(notes))

    return value


def _attempts(document: Document, column: Column) -> list[Attempt]:
    return [one for one in document.attempts if (one.server, one.model) == (column.server, column.model)]


def _tokens_per_s(attempt: Attempt, group: str) -> float | None:
    summary = attempt.group(group)
    return summary.output_tokens_per_s if summary is not None and summary.num_succeeded else None


def _ttft_p50(attempt: Attempt, group: str) -> float | None:
    summary = attempt.group(group)
    return None if summary is None else summary.ttft_ms.p50


def _itl_p50(attempt: Attempt, group: str) -> float | None:
    summary = attempt.group(group)
    return None if summary is None else summary.itl_ms.p50


def _itl_p99(attempt: Attempt, group: str) -> float | None:
    summary = attempt.group(group)
    return None if summary is None else summary.itl_ms.p99


def _highest_rate(document: Document, column: Column) -> Value | None:
    """Per round the highest real rate that was borne; 0 where none was. Of several rounds the median."""
    attempts = [one for one in _attempts(document, column) if one.workload == "w4"]
    highest, failed = [], []
    for number in sorted({one.round for one in attempts}):
        tried = [one.summaries[0] for one in attempts if one.round == number]
        is_borne = {one.offered_rps or 0.0: (one.attainment or 0.0) >= WANTED_ATTAINMENT for one in tried}
        highest.append(max((rate for rate in is_borne if is_borne[rate]), default=0.0))
        failed += [rate for rate in is_borne if rate > highest[-1]]
    if not highest:
        return None
    note = f"{min(failed):.2f} is not" if failed else "no higher one was tried"
    unclean = any(one.cpu.is_clean is False for one in attempts)
    return Value(median(highest), note + (", not clean" if unclean else ""))


def _memory_mb(document: Document, column: Column) -> Value | None:
    found = [one for one in document.memories if (one.server, one.model) == (column.server, column.model)]
    return Value(median(one.pss_bytes / 1e6 for one in found)) if found else None


def _ready_s(is_first: bool) -> Callable[[Document, Column], Value | None]:
    def value(document: Document, column: Column) -> Value | None:
        of_column = [one for one in document.starts if (one.server, one.model) == (column.server, column.model)]
        found = [one.ready_s for one in of_column if one.is_first is is_first]
        if not found and any(one.is_first for one in document.starts):
            found = [one.ready_s for one in of_column]  # it keeps no caches: every start is as the first
        return Value(median(found)) if found else None

    return value


FIGURES = (
    Figure("W1 single stream, output tokens/s", True, _of_group("w1", "all", _tokens_per_s)),
    Figure("W1 TTFT p50, ms", False, _of_group("w1", "all", _ttft_p50)),
    Figure("W1 ITL p99, ms", False, _of_group("w1", "all", _itl_p99)),
    Figure("W2 16 concurrent, output tokens/s", True, _of_group("w2", "all", _tokens_per_s)),
    Figure("W2 TTFT p50, ms", False, _of_group("w2", "all", _ttft_p50)),
    Figure("W2 ITL p99, ms", False, _of_group("w2", "all", _itl_p99)),
    Figure("W3 steady streams, output tokens/s", True, _of_group("w3", "steady", _tokens_per_s)),
    Figure("W3 steady ITL p50, ms", False, _of_group("w3", "steady", _itl_p50)),
    Figure("W3 steady ITL p99, ms", False, _of_group("w3", "steady", _itl_p99)),
    Figure("W3 long prompts' TTFT p50, ms", False, _of_group("w3", "long", _ttft_p50)),
    Figure("W4 highest rate borne, requests/s", True, _highest_rate),
    Figure("memory at most, MB", False, _memory_mb),
    Figure("first start to ready, s", False, _ready_s(True)),
    Figure("second start to ready, s", False, _ready_s(False)),
    Figure("0.5B W1, output tokens/s", True, _of_group("w1", "all", _tokens_per_s), HALF_BILLION),
    Figure("0.5B W1 TTFT p50, ms", False, _of_group("w1", "all", _ttft_p50), HALF_BILLION),
    Figure("0.5B W2, output tokens/s", True, _of_group("w2", "all", _tokens_per_s), HALF_BILLION),
    Figure("0.5B W2 TTFT p50, ms", False, _of_group("w2", "all", _ttft_p50), HALF_BILLION),
)
