"""A histogram that costs a sixth of a microsecond per observation: counts in a list, found by bisection.

prometheus_client's takes a lock and walks the buckets, 0.8 to 1.3 µs (2 cores, Python 3.11), and would be paid at every
step and token. Written by one thread; another may read, and sees every observation in its bucket or not at all.
"""

from bisect import bisect_left
from itertools import accumulate

from observability.catalogue import Kind, Metric


class Histogram:
    """Of one metric and, if it has labels, one set of their values."""

    __slots__ = ("_bounds", "_counts", "_total", "labels", "metric")

    def __init__(self, metric: Metric, *labels: str) -> None:
        assert metric.kind is Kind.HISTOGRAM and len(labels) == len(metric.labels), metric.name
        self.metric, self.labels = metric, labels
        self._bounds = metric.bounds
        self._counts = [0] * (len(metric.bounds) + 1)
        self._total = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """`value` was seen, `count` times."""
        self._counts[bisect_left(self._bounds, value)] += count
        self._total += value * count

    @property
    def count(self) -> int:
        """Observations so far."""
        return sum(self._counts)

    @property
    def total(self) -> float:
        """The sum of what was observed."""
        return self._total

    def counts(self) -> list[int]:
        """Observations of each bucket, not cumulative; the last one has no upper bound."""
        return list(self._counts)

    def buckets(self) -> list[tuple[str, int]]:
        """(upper bound, observations up to it), cumulative, as Prometheus wants them."""
        bounds = [*map(repr, self._bounds), "+Inf"]
        return list(zip(bounds, accumulate(list(self._counts)), strict=True))
