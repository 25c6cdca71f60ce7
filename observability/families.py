"""From what was measured to Prometheus' text format, which prometheus_client writes.

Under vLLM's names once more where that is asked for. Knows the catalogue and what workers say of themselves; measures
nothing and asks nobody.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family

from messages.worker_status import Role, WorkerState, WorkerStatus
from observability import catalogue
from observability.catalogue import Kind, Metric
from observability.histogram import Histogram
from observability.worker_meters import WorkerMeters

Values = Sequence[tuple[tuple[str, ...], float]]  # (values of the labels, value)


class Aliases:
    """vLLM's labels: the model, and the `engine`, which is a worker or, for what an API process measures, "0"."""

    def __init__(self, model_name: str) -> None:
        self._model_name = model_name

    def values(self, metric: Metric, values: Values) -> Family:
        """The metric's values by vLLM's name."""
        own = tuple(label for label in metric.labels if label not in ("worker", "role"))
        engine_at = metric.labels.index("worker") if "worker" in metric.labels else None
        family = _family(metric, f"vllm:{metric.vllm}", ("model_name", "engine", *_finished(own)))
        for labels, value in values:
            engine = "0" if engine_at is None else labels[engine_at]
            rest = tuple(value for name, value in zip(metric.labels, labels, strict=True) if name in own)
            family.add_metric((self._model_name, engine, *rest), value)
        return family

    def histogram(self, histogram: Histogram, engine: str) -> Family:
        """A histogram by vLLM's name."""
        metric = histogram.metric
        family = HistogramMetricFamily(f"vllm:{metric.vllm}", metric.meaning, labels=("model_name", "engine"))
        family.add_metric((self._model_name, engine), _texts(histogram), histogram.total)
        return family

    def gauge(self, name: str, meaning: str, value: float) -> Family:
        """What pdq has in another form."""
        family = GaugeMetricFamily(name, meaning, labels=("model_name", "engine"))
        family.add_metric((self._model_name, "0"), value)
        return family

    def counter(self, name: str, meaning: str, value: float) -> Family:
        """What pdq has in another form."""
        family = CounterMetricFamily(name, meaning, labels=("model_name", "engine"))
        family.add_metric((self._model_name, "0"), value)
        return family


def text_of(families: Iterable[Family]) -> bytes:
    """Prometheus' text format of them."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collected(lambda: families))
    return generate_latest(registry)


class Collected:
    """A collector in prometheus_client's sense: what `read` gives at each scrape."""

    def __init__(self, read: Callable[[], Iterable[Family]]) -> None:
        self._read = read

    def collect(self) -> Iterable[Family]:
        """See prometheus_client."""
        return self._read()

    def describe(self) -> Iterable[Family]:
        """Nothing in advance: else registering would be a scrape."""
        return ()


def family_of(metric: Metric, values: Values) -> Family:
    """A counter or a gauge."""
    family = _family(metric, metric.name, metric.labels)
    for labels, value in values:
        family.add_metric(labels, value)
    return family


def histogram_families(histograms: Iterable[Histogram]) -> Iterator[Family]:
    """Those of one metric together."""
    families: dict[str, HistogramMetricFamily] = {}
    for histogram in histograms:
        metric = histogram.metric
        family = families.setdefault(
            metric.name, HistogramMetricFamily(metric.name, metric.meaning, labels=metric.labels)
        )
        family.add_metric(histogram.labels, _texts(histogram), histogram.total)
    return iter(families.values())


def worker_families(workers: Sequence[WorkerStatus], aliases: Aliases | None = None) -> Iterator[Family]:
    """What the workers say of themselves."""
    for metric, values in _of_workers(workers).items():
        yield family_of(metric, values)
        if aliases is not None and metric.vllm:
            yield aliases.values(metric, values)


def own_families(meters: WorkerMeters, status: WorkerStatus, aliases: Aliases | None = None) -> Iterator[Family]:
    """Everything that one worker has: its status, and what travels in no heartbeat.

    Under vLLM's names only what no API process has, so that nothing is there twice.
    """
    yield from worker_families([status])
    yield family_of(catalogue.OPEN_OFFERS, [((status.worker_id, status.role), meters.num_offers())])
    pairs = [((status.worker_id, *pair), number) for pair, number in meters.read_pairs().items()]
    yield family_of(catalogue.PAIR_PULLS, pairs)
    yield from histogram_families(meters.histograms())
    if aliases is not None:
        # A request waits twice; vLLM's queue time is the wait for its prefill.
        skipped = {
            id(meters.queues["decode"]),
            id(meters.queues["local" if status.role is Role.PREFILL else "prefill"]),
        }
        for histogram in meters.histograms():
            if histogram.metric.vllm and id(histogram) not in skipped:
                yield aliases.histogram(histogram, status.worker_id)


def _of_workers(workers: Sequence[WorkerStatus]) -> Mapping[Metric, Values]:
    def each(read: Callable[[WorkerStatus], float]) -> Values:
        return [((worker.worker_id, worker.role), read(worker)) for worker in workers]

    def transfers(field: str) -> Values:
        return [
            ((worker.worker_id, kind), getattr(count, field))
            for worker in workers
            for kind, count in worker.transfers.items()
        ]

    rates = [((one.worker_id, one.role), one.tokens_per_s) for one in workers if one.role is Role.PREFILL]
    return {
        catalogue.KV_CAPACITY: each(lambda worker: worker.capacity_tokens),
        catalogue.KV_USED: each(lambda one: 1 - one.free_blocks / one.num_blocks if one.num_blocks else 0.0),
        catalogue.RUNNING: each(lambda worker: worker.num_running),
        catalogue.IDLE: each(lambda worker: worker.idle_s),
        catalogue.READY: each(lambda worker: float(worker.state is WorkerState.READY)),
        catalogue.PREFILLED: each(lambda worker: worker.prefilled_tokens),
        catalogue.PREFILL_RATE: rates,
        catalogue.PULLS: transfers("pulls"),
        catalogue.PULL_FAILURES: transfers("failures"),
        catalogue.PULLED_BYTES: transfers("num_bytes"),
        **{
            metric: [((one.worker_id, one.role), one.counters[name]) for one in workers if name in one.counters]
            for name, metric in catalogue.WORKER_COUNTERS.items()
        },
    }


def _family(metric: Metric, name: str, labels: tuple[str, ...]) -> CounterMetricFamily | GaugeMetricFamily:
    family = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
    return family(name, metric.meaning, labels=labels)


def _texts(histogram: Histogram) -> list[tuple[str, float]]:
    return [(bound, float(count)) for bound, count in histogram.buckets()]


def _finished(labels: tuple[str, ...]) -> tuple[str, ...]:
    """vLLM writes finish_reason otherwise."""
    return tuple("finished_reason" if label == "finish_reason" else label for label in labels)
