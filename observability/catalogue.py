"""Every figure that pdq exposes: its name, its kind, what it means, its labels and its buckets.

Names and meanings are here and nowhere else; docs/metrics.md, the dashboard and the alert rules are checked against
this table. The names after `vllm` are those under which vLLM has the same figure, so that its tools and dashboards
work. Pure; knows no process and no library.
"""

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What Prometheus calls it."""

    COUNTER = "counter"  # its name ends in _total where it is exposed
    GAUGE = "gauge"
    HISTOGRAM = "histogram"  # exposed as _bucket, _sum and _count


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure. `name` is without the suffix that Prometheus' format gives to its kind."""

    name: str
    kind: Kind
    meaning: str  # a sentence, with the unit
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()  # of a histogram's buckets, in the unit of the name
    vllm: str = ""


# OpenTelemetry's buckets for the time to the first token, and further up: requests may wait in queues.
WAIT_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
# And for the time per token, and further down: a step on a GPU takes a few milliseconds.
TOKEN_S = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 10.0)
# Trips to Redis, copies of KV, writes to a socket.
TRIP_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
LIFE_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)
TOKENS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0, 20000.0, 50000.0)
SEQUENCES = (1.0, 2.0, 4.0, 8.0, 16.0, 24.0, 32.0, 48.0, 64.0, 96.0, 128.0, 192.0, 256.0, 512.0)

_WORKER = ("worker", "role")
_CLASS = ("queue", "priority")

# -- what an API process measures of the requests that came to it ----------------------------------------------------

ADMISSION = Metric(
    "pdq_admission_seconds",
    Kind.HISTOGRAM,
    "From a request's arrival at the API process until it is on the prefill queue.",
    bounds=WAIT_S,
)
FIRST_TOKEN = Metric(
    "pdq_time_to_first_token_seconds",
    Kind.HISTOGRAM,
    "From a request's arrival at the API process to a sequence's first token there.",
    bounds=WAIT_S,
    vllm="time_to_first_token_seconds",
)
INTER_TOKEN = Metric(
    "pdq_inter_token_latency_seconds",
    Kind.HISTOGRAM,
    "Between a token's arrival at the API process and that of the one before; 0 for tokens that came together.",
    bounds=TOKEN_S,
    vllm="inter_token_latency_seconds",
)
RELAY = Metric(
    "pdq_relay_seconds",
    Kind.HISTOGRAM,
    "Per token, from its arrival at the API process until it is text and written to the client's connection.",
    bounds=TRIP_S,
)
SEQUENCE = Metric(
    "pdq_sequence_seconds",
    Kind.HISTOGRAM,
    "From a request's arrival at the API process to the end of a sequence that ended by itself.",
    bounds=LIFE_S,
    vllm="e2e_request_latency_seconds",
)
SEQUENCES_ENDED = Metric(
    "pdq_sequences",
    Kind.COUNTER,
    "Sequences that ended here, by finish_reason; `left`: the client went and the sequence goes on.",
    ("finish_reason",),
    vllm="request_success",
)
PROMPT_TOKENS = Metric(
    "pdq_prompt_tokens",
    Kind.HISTOGRAM,
    "Tokens of a request's prompt.",
    bounds=TOKENS,
    vllm="request_prompt_tokens",
)
OUTPUT_TOKENS = Metric(
    "pdq_output_tokens",
    Kind.HISTOGRAM,
    "Tokens of a sequence that ended by itself.",
    bounds=TOKENS,
    vllm="request_generation_tokens",
)
RESPONSES = Metric(
    "pdq_http_responses", Kind.COUNTER, "HTTP responses, by the route's path and by status.", ("route", "status")
)
FOLLOWED = Metric("pdq_followed_sequences", Kind.GAUGE, "Sequences that the API process reads at the moment.")

# -- what Redis says, asked by an API process ------------------------------------------------------------------------

QUEUE_JOBS = Metric("pdq_queue_jobs", Kind.GAUGE, "Jobs that wait or are worked on.", ("role", "priority"))
QUEUE_WAITING = Metric("pdq_queue_waiting_jobs", Kind.GAUGE, "Jobs that no worker has taken yet.", _CLASS)
QUEUE_OLDEST = Metric(
    "pdq_queue_oldest_seconds", Kind.GAUGE, "For how long the oldest job that waits has waited; 0: none waits.", _CLASS
)

ROLE_NEEDED = Metric(
    "pdq_role_needed", Kind.GAUGE, "1: requests pass through workers of this role; 0: this model has none.", ("role",)
)
BATCHES_OPEN = Metric("pdq_batches_open", Kind.GAUGE, "Batches that have not ended.")
BATCH_WORKERS = Metric("pdq_batch_workers", Kind.GAUGE, "Batch workers that live.")
BATCHES_ENDED = Metric("pdq_batches_ended", Kind.COUNTER, "Batches that have ended, by how.", ("status",))
BATCH_LINES = Metric(
    "pdq_batch_lines", Kind.COUNTER, "Lines of batches that were answered: completed or failed.", ("outcome",)
)
WEBHOOKS = Metric("pdq_webhooks", Kind.COUNTER, "Webhooks that are over: delivered or given_up.", ("outcome",))

# -- what a worker says of itself, and an API process of every live worker -------------------------------------------

KV_CAPACITY = Metric("pdq_kv_capacity_tokens", Kind.GAUGE, "Tokens that the KV pool holds.", _WORKER)
KV_USED = Metric(
    "pdq_kv_used_ratio",
    Kind.GAUGE,
    "Share (0 to 1) of the KV pool's blocks that is held.",
    _WORKER,
    vllm="kv_cache_usage_perc",
)
RUNNING = Metric(
    "pdq_running_sequences",
    Kind.GAUGE,
    "Sequences in the running batch.",
    _WORKER,
    vllm="num_requests_running",
)
IDLE = Metric("pdq_idle_seconds", Kind.GAUGE, "Time since the worker's loop last came round.", _WORKER)
READY = Metric("pdq_worker_ready", Kind.GAUGE, "1: the worker takes jobs; 0: it loads or drains.", _WORKER)
PREFILLED = Metric("pdq_prefilled_tokens", Kind.COUNTER, "Tokens that prefill has computed.", _WORKER)
PREFILL_RATE = Metric(
    "pdq_prefill_tokens_per_second", Kind.GAUGE, "A prefill worker's rate of prefill at work, of late.", _WORKER
)
PULLS = Metric("pdq_kv_pulls", Kind.COUNTER, "KV transfers that a worker has pulled.", ("worker", "transport"))
PULL_FAILURES = Metric("pdq_kv_pull_failures", Kind.COUNTER, "KV transfers that failed.", ("worker", "transport"))
PULLED_BYTES = Metric("pdq_kv_pulled_bytes", Kind.COUNTER, "Bytes of KV pulled.", ("worker", "transport"))

RECLAIMED = Metric(
    "pdq_jobs_reclaimed", Kind.COUNTER, "Jobs that the worker took over from one that died or hung.", _WORKER
)
FENCED = Metric(
    "pdq_fenced_appends",
    Kind.COUNTER,
    "Tokens that Redis refused because their sequence had ended or was another worker's by then.",
    _WORKER,
)
LOST = Metric("pdq_jobs_lost", Kind.COUNTER, "Jobs that the worker had to drop: cancelled, or another's.", _WORKER)
FAILED = Metric("pdq_jobs_failed", Kind.COUNTER, "Sequences that the worker ended with an error.", _WORKER)
EXPIRED = Metric("pdq_jobs_expired", Kind.COUNTER, "Sequences that the worker ended as they were late.", _WORKER)
PREEMPTED = Metric(
    "pdq_preemptions",
    Kind.COUNTER,
    "Sequences that gave their blocks back and are computed again.",
    _WORKER,
    vllm="num_preemptions",
)
REFUSED_HANDLES = Metric(
    "pdq_kv_handles_refused", Kind.COUNTER, "KV handles that were not pulled: seal or size is wrong.", _WORKER
)
PREFIX_QUERIED = Metric(
    "pdq_prefix_queried_tokens",
    Kind.COUNTER,
    "Prompt tokens that were looked for in the prefix cache.",
    _WORKER,
    vllm="prefix_cache_queries",
)
PREFIX_HIT = Metric(
    "pdq_prefix_hit_tokens",
    Kind.COUNTER,
    "Prompt tokens that were found there, and not computed.",
    _WORKER,
    vllm="prefix_cache_hits",
)
WORKER_COUNTERS = {
    metric.name: metric
    for metric in (
        *(RECLAIMED, FENCED, LOST, FAILED, EXPIRED, PREEMPTED, REFUSED_HANDLES),
        *(PREFIX_QUERIED, PREFIX_HIT),
    )
}

# -- what a worker alone exposes, on a port of its own ---------------------------------------------------------------

QUEUE = Metric(
    "pdq_queue_seconds",
    Kind.HISTOGRAM,
    "From a job's being put on a queue until a worker has taken it, by Redis' clock. Reclaimed jobs are not counted.",
    ("queue",),
    WAIT_S,
    vllm="request_queue_time_seconds",
)
PREFILL = Metric(
    "pdq_prefill_seconds",
    Kind.HISTOGRAM,
    "From the taking of a prefill job until its token is published.",
    bounds=WAIT_S,
    vllm="request_prefill_time_seconds",
)
PREFILL_STEP = Metric(
    "pdq_prefill_step_seconds", Kind.HISTOGRAM, "One step of prefill, its publishing included.", bounds=WAIT_S
)
OFFER = Metric(
    "pdq_offer_seconds",
    Kind.HISTOGRAM,
    "From a sequence's first token being there until it is published, its KV offered and its job on the decode queue.",
    bounds=TRIP_S,
)
KV_WAIT = Metric(
    "pdq_kv_wait_seconds",
    Kind.HISTOGRAM,
    "From the taking of a decode job until there are blocks for its KV.",
    bounds=WAIT_S,
)
PULL = Metric("pdq_kv_pull_seconds", Kind.HISTOGRAM, "One pull of a sequence's KV that succeeded.", bounds=TRIP_S)
DECODE = Metric(
    "pdq_decode_seconds",
    Kind.HISTOGRAM,
    "From a sequence's joining a decode worker's batch until its last token is published there.",
    bounds=LIFE_S,
    vllm="request_decode_time_seconds",
)
DECODE_STEP = Metric("pdq_decode_step_seconds", Kind.HISTOGRAM, "One decode step.", bounds=TOKEN_S)
BATCH = Metric("pdq_decode_batch_sequences", Kind.HISTOGRAM, "Sequences of one decode step.", bounds=SEQUENCES)
PUBLISH = Metric(
    "pdq_publish_seconds",
    Kind.HISTOGRAM,
    "One step's tokens on their way to Redis and back.",
    bounds=TRIP_S,
)
OPEN_OFFERS = Metric("pdq_open_offers", Kind.GAUGE, "Offers of KV that nobody has pulled yet.", _WORKER)
PAIR_PULLS = Metric(
    "pdq_kv_pair_pulls",
    Kind.COUNTER,
    "KV transfers of one pair of workers, by the transport that the pair used.",
    ("worker", "owner", "transport"),
)

METRICS = {metric.name: metric for metric in list(globals().values()) if isinstance(metric, Metric)}

# Under vLLM's names alone: what pdq has in another form.
VLLM_WAITING = "vllm:num_requests_waiting"  # gauge: the sum of pdq_queue_waiting_jobs
VLLM_PROMPT_TOKENS = "vllm:prompt_tokens"  # counter: pdq_prompt_tokens_sum
VLLM_GENERATED_TOKENS = "vllm:generation_tokens"  # counter: tokens that came to the API process


def exposed_names(metric: Metric) -> tuple[str, ...]:
    """The names of its series in Prometheus."""
    if metric.kind is Kind.HISTOGRAM:
        return tuple(f"{metric.name}{suffix}" for suffix in ("_bucket", "_sum", "_count"))
    return (f"{metric.name}_total",) if metric.kind is Kind.COUNTER else (metric.name,)
