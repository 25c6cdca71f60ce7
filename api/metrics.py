"""The cluster's figures as Prometheus reads them: each scrape is made afresh of what registry and queues say then.

Names and meanings of the figures are here and nowhere else. Knows no route and no Redis.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from messages import Priority, Role, WorkerStatus

_WORKER = ("worker", "role")
_TRANSFER = ("worker", "transport")


Depths = Mapping[Role, Mapping[Priority, int]]


def exposition(workers: Sequence[WorkerStatus], depths: Depths) -> bytes:
    """Prometheus' text format of the workers' figures, and of how many jobs each class of each queue holds."""
    registry = CollectorRegistry()
    registry.register(_Workers(workers))
    registry.register(_Queues(depths))
    return generate_latest(registry)


class _Queues:
    """A collector in prometheus_client's sense."""

    def __init__(self, depths: Depths) -> None:
        self._depths = depths

    def collect(self) -> Iterable[Metric]:
        jobs = GaugeMetricFamily("pdq_queue_jobs", "Jobs that wait or are worked on.", labels=("role", "priority"))
        for role, depths in self._depths.items():
            for priority, depth in depths.items():
                jobs.add_metric((role, priority), depth)
        return (jobs,)


class _Workers:
    """A collector in prometheus_client's sense."""

    def __init__(self, workers: Sequence[WorkerStatus]) -> None:
        self._workers = workers

    def collect(self) -> Iterable[Metric]:
        yield from self._pools()
        yield from self._transfers()

    def _pools(self) -> Iterator[Metric]:
        capacity = GaugeMetricFamily("pdq_kv_capacity_tokens", "Tokens that the KV pool holds.", labels=_WORKER)
        used = GaugeMetricFamily("pdq_kv_used_ratio", "Share of the KV pool's blocks that is held.", labels=_WORKER)
        running = GaugeMetricFamily("pdq_running_sequences", "Sequences in the running batch.", labels=_WORKER)
        idle = GaugeMetricFamily("pdq_idle_seconds", "Time since the worker's loop last came round.", labels=_WORKER)
        computed = CounterMetricFamily("pdq_prefilled_tokens", "Tokens that prefill has computed.", labels=_WORKER)
        rate = GaugeMetricFamily("pdq_prefill_tokens_per_second", "Rate of prefill at work, of late.", labels=_WORKER)
        for worker in self._workers:
            labels = (worker.worker_id, worker.role)
            computed.add_metric(labels, worker.prefilled_tokens)
            if worker.role is Role.PREFILL:
                rate.add_metric(labels, worker.tokens_per_s)
            capacity.add_metric(labels, worker.capacity_tokens)
            used.add_metric(labels, 1 - worker.free_blocks / worker.num_blocks if worker.num_blocks else 0.0)
            running.add_metric(labels, worker.num_running)
            idle.add_metric(labels, worker.idle_s)
        return iter((capacity, used, running, idle, computed, rate))

    def _transfers(self) -> Iterator[Metric]:
        pulls = CounterMetricFamily("pdq_kv_pulls", "KV transfers that a worker has pulled.", labels=_TRANSFER)
        failures = CounterMetricFamily("pdq_kv_pull_failures", "KV transfers that failed.", labels=_TRANSFER)
        num_bytes = CounterMetricFamily("pdq_kv_pulled_bytes", "Bytes of KV pulled.", labels=_TRANSFER)
        for worker in self._workers:
            for kind, count in worker.transfers.items():
                labels = (worker.worker_id, kind)
                pulls.add_metric(labels, count.pulls)
                failures.add_metric(labels, count.failures)
                num_bytes.add_metric(labels, count.num_bytes)
        return iter((pulls, failures, num_bytes))
