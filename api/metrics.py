"""/metrics of an API process: what it has measured itself, and what registry and queues say of the cluster by then.

Every API process says the same of workers and queues; of requests, each says what came to it. Knows no route and no
Redis.
"""

from collections.abc import Iterator, Mapping, Sequence

from prometheus_client.metrics_core import Metric as Family

from api.meters import ApiMeters
from broker.batch_records import BatchTotals
from broker.queue_waits import Wait
from messages.request import Priority
from messages.worker_status import Role, WorkerStatus
from observability import catalogue
from observability.families import Aliases, family_of, histogram_families, text_of, worker_families

Depths = Mapping[Role, Mapping[Priority, int]]


def exposition(
    meters: ApiMeters,
    num_followed: int,
    workers: Sequence[WorkerStatus],
    depths: Depths,
    waits: Sequence[Wait],
    aliases: Aliases | None = None,
    batches: BatchTotals | None = None,
    needed: Sequence[Role] = tuple(Role),
) -> bytes:
    """Prometheus' text format.

    `num_followed`: sequences that are read at the moment; `depths`: how many jobs each class of each queue holds;
    `aliases`: for vLLM's names, if they are wanted; `batches`: what all batches came to; `needed`: the roles that a
    request passes through.
    """
    families = [
        *_queues(depths, waits),
        *(_batches(batches) if batches is not None else ()),
        *worker_families(workers, aliases),
        family_of(catalogue.ROLE_NEEDED, [((role,), int(role in needed)) for role in Role]),
        *_requests(meters, num_followed),
    ]
    if aliases is not None:
        families += _renamed(meters, waits, aliases)
    return text_of(families)


def _queues(depths: Depths, waits: Sequence[Wait]) -> Iterator[Family]:
    jobs = [((role, priority), depth) for role, classes in depths.items() for priority, depth in classes.items()]
    yield family_of(catalogue.QUEUE_JOBS, jobs)
    yield family_of(catalogue.QUEUE_WAITING, [((one.queue, one.priority), one.num_jobs) for one in waits])
    yield family_of(catalogue.QUEUE_OLDEST, [((one.queue, one.priority), one.oldest_s) for one in waits])


def _batches(totals: BatchTotals) -> Iterator[Family]:
    yield family_of(catalogue.BATCHES_OPEN, [((), totals.num_open)])
    yield family_of(catalogue.BATCH_WORKERS, [((), totals.num_workers)])
    for metric, counted in (
        (catalogue.BATCHES_ENDED, totals.batches),
        (catalogue.BATCH_LINES, totals.lines),
        (catalogue.WEBHOOKS, totals.webhooks),
    ):
        yield family_of(metric, [((name,), number) for name, number in sorted(counted.items())])


def _requests(meters: ApiMeters, num_followed: int) -> Iterator[Family]:
    yield family_of(catalogue.FOLLOWED, [((), num_followed)])
    yield family_of(catalogue.SEQUENCES_ENDED, [((reason,), number) for reason, number in meters.ended.items()])
    yield family_of(catalogue.RESPONSES, list(meters.responses.items()))
    yield from histogram_families(meters.histograms())


def _renamed(meters: ApiMeters, waits: Sequence[Wait], aliases: Aliases) -> Iterator[Family]:
    for histogram in meters.histograms():
        if histogram.metric.vllm:
            yield aliases.histogram(histogram, "0")
    ended = [((reason,), number) for reason, number in meters.ended.items()]
    yield aliases.values(catalogue.SEQUENCES_ENDED, ended)
    waiting = sum(one.num_jobs for one in waits)
    yield aliases.gauge(catalogue.VLLM_WAITING, "Jobs that no worker has taken yet.", waiting)
    prompt_tokens = meters.prompt_tokens.total
    yield aliases.counter(catalogue.VLLM_PROMPT_TOKENS, "Tokens of the requests' prompts.", prompt_tokens)
    yield aliases.counter(catalogue.VLLM_GENERATED_TOKENS, "Tokens that came for clients.", meters.num_tokens)
