"""What a worker measures of its own work: the phases of a request, its steps, and what seldom happens.

Written by the worker's event loop alone; its listener and its heartbeat read. A phase becomes an observation and, where
the request is traced, a span, built afterwards from how long it took. Knows no Redis and no library.
"""

import time
from collections.abc import Callable, Mapping
from typing import Protocol

from messages.request import GenerationRequest
from messages.worker_status import FinishedPhase
from observability.catalogue import (
    BATCH,
    DECODE,
    DECODE_STEP,
    KV_WAIT,
    OFFER,
    PREFILL,
    PREFILL_STEP,
    PUBLISH,
    PULL,
    QUEUE,
    WORKER_COUNTERS,
    Metric,
)
from observability.histogram import Histogram

Attributes = Mapping[str, str | int | float | bool]
Pair = tuple[str, str]  # owner of the KV, transport

RECENT_PHASES = 64  # what a heartbeat carries of them is bounded by number and by age
RECENT_S = 2.0


class Spans(Protocol):
    """Where finished spans go (observability/tracing.py)."""

    def add(
        self, name: str, parent: str, began_ns: int, ended_ns: int, attributes: Attributes, error: str = ""
    ) -> None:
        """A span that is over, below the W3C traceparent `parent`; Unix times."""


class WorkerMeters:
    """One per worker process. `spans` is None where nothing is traced."""

    def __init__(self) -> None:
        self.queues = {name: Histogram(QUEUE, name) for name in ("prefill", "decode", "local")}
        self.prefill = Histogram(PREFILL)
        self.prefill_step = Histogram(PREFILL_STEP)
        self.offer = Histogram(OFFER)
        self.kv_wait = Histogram(KV_WAIT)
        self.pull = Histogram(PULL)
        self.decode = Histogram(DECODE)
        self.decode_step = Histogram(DECODE_STEP)
        self.batch = Histogram(BATCH)
        self.publish = Histogram(PUBLISH)
        self.counts = dict.fromkeys(WORKER_COUNTERS, 0)
        self.read_pairs: Callable[[], Mapping[Pair, int]] = dict
        self.num_offers: Callable[[], int] = lambda: 0
        self.spans: Spans | None = None
        self._phases: tuple[FinishedPhase, ...] = ()  # replaced, never changed: another thread reads it
        self._num_phases = 0

    def count(self, metric: Metric, number: int = 1) -> None:
        """One of WORKER_COUNTERS happened."""
        self.counts[metric.name] += number

    def phase(
        self, histogram: Histogram, seconds: float, name: str, request: GenerationRequest, **facts: str | int | float
    ) -> None:
        """A phase of `request` that took so long is over now."""
        histogram.observe(seconds)
        self.span(name, seconds, request, **facts)

    def span(self, name: str, seconds: float, request: GenerationRequest, **facts: str | int | float) -> None:
        """`phase` without the observation: for whoever follows this request, by its trace or on the page."""
        ended_ns = time.time_ns()
        self._num_phases += 1
        finished = FinishedPhase(
            self._num_phases,
            request.request_id,
            int(facts.get("choice", 0)),
            name,
            ended_ns // 1_000_000,
            round(seconds * 1000, 2),
        )
        self._phases = (*self._phases[1 - RECENT_PHASES :], finished)
        if request.trace and self.spans is not None:
            attributes = {f"pdq.{fact}": value for fact, value in facts.items()}
            attributes["pdq.request_id"] = request.request_id
            self.spans.add(name, request.trace, ended_ns - round(seconds * 1e9), ended_ns, attributes)

    def recent_phases(self) -> tuple[FinishedPhase, ...]:
        """Those that ended in the last RECENT_S, RECENT_PHASES of them at most, in order. From any thread."""
        since_ms = (time.time() - RECENT_S) * 1000
        return tuple(phase for phase in self._phases if phase.ended_ms >= since_ms)

    def histograms(self) -> tuple[Histogram, ...]:
        """All of them."""
        return (
            *self.queues.values(),
            *(self.prefill, self.prefill_step, self.offer, self.kv_wait, self.pull),
            *(self.decode, self.decode_step, self.batch, self.publish),
        )
