"""What Prometheus, OpenTelemetry and the logs get to know of a real cluster, counted against what was sent to it."""

import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from messages.worker_status import Role
from observability.catalogue import METRICS, exposed_names
from tests.end_to_end.cluster import Cluster, free_port, running_cluster, wait_until
from tests.end_to_end.otlp_collector import Collector, Span, otlp_collector

NUM_REQUESTS, NUM_TOKENS = 6, 5
PROMPT = list(range(100, 140))
PARAMETERS = {"max_new_tokens": NUM_TOKENS, "ignore_eos": True}
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
CLIENT_SPAN = "00f067aa0ba902b7"

Figures = dict[tuple[str, frozenset[tuple[str, str]]], float]


@dataclass
class Watched:
    """A cluster and where its processes are looked at, by the name of the process."""

    cluster: Cluster
    collector: Collector
    urls: dict[str, str]

    def figures(self, name: str) -> Figures:
        answer = httpx.get(self.urls[name], timeout=10)
        assert answer.status_code == 200
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(answer.text)
            for sample in family.samples
        }

    def total(self, process: str, series: str, **labels: str) -> float:
        """The sum over the process's series of that name which have these labels."""
        wanted = labels.items()
        return sum(
            value for (name, own), value in self.figures(process).items() if name == series and wanted <= set(own)
        )

    def start_decode(self) -> str:
        port = free_port()
        name = self.cluster.start("decode", PDQ_METRICS__PORT=str(port))
        self.urls[name] = f"http://127.0.0.1:{port}/metrics"
        return name


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, redis_url: str, tiny_dir: Path) -> Iterator[Watched]:
    """1 prefill and 1 decode worker that have answered NUM_REQUESTS streams."""
    folder, port = tmp_path_factory.mktemp("watched"), free_port()
    with otlp_collector() as collector:
        env = {
            "PDQ_TRACING__OTLP_ENDPOINT": collector.url,
            "PDQ_TRACING__SAMPLE_SHARE": "0",  # only what a client wants to have traced
            "PDQ_TRACING__EXPORT_EVERY_S": "0.2",
            "PDQ_QUEUE__LEASE_S": "0.5",
            "PDQ_QUEUE__HEARTBEAT_S": "0.1",
        }
        with running_cluster(folder, redis_url, tiny_dir, env, prefill=0, decode=0, wait=False) as cluster:
            watched = Watched(cluster, collector, {"api-0": cluster.url + "/metrics"})
            cluster.start("prefill", PDQ_METRICS__PORT=str(port))
            watched.urls["prefill-0"] = f"http://127.0.0.1:{port}/metrics"
            watched.start_decode()
            cluster.wait_healthy()
            for _ in range(NUM_REQUESTS):
                assert len(list(cluster.stream(PROMPT, **PARAMETERS))) == NUM_TOKENS
            wait_until(cluster.all_blocks_are_free, 10, "what was offered is released")
            yield watched


@pytest.mark.parametrize(
    ("process", "metric", "labels", "count"),
    [
        ("api-0", "pdq_admission_seconds", {}, NUM_REQUESTS),
        ("api-0", "pdq_time_to_first_token_seconds", {}, NUM_REQUESTS),
        ("api-0", "pdq_inter_token_latency_seconds", {}, NUM_REQUESTS * (NUM_TOKENS - 1)),
        ("api-0", "pdq_relay_seconds", {}, NUM_REQUESTS * NUM_TOKENS),
        ("api-0", "pdq_sequence_seconds", {}, NUM_REQUESTS),
        ("api-0", "pdq_prompt_tokens", {}, NUM_REQUESTS),
        ("api-0", "pdq_output_tokens", {}, NUM_REQUESTS),
        ("api-0", "vllm:time_to_first_token_seconds", {}, NUM_REQUESTS),
        ("api-0", "vllm:inter_token_latency_seconds", {}, NUM_REQUESTS * (NUM_TOKENS - 1)),
        ("api-0", "vllm:e2e_request_latency_seconds", {}, NUM_REQUESTS),
        ("prefill-0", "pdq_queue_seconds", {"queue": "prefill"}, NUM_REQUESTS),
        ("prefill-0", "pdq_prefill_seconds", {}, NUM_REQUESTS),
        ("prefill-0", "pdq_prefill_step_seconds", {}, NUM_REQUESTS),
        ("prefill-0", "pdq_offer_seconds", {}, NUM_REQUESTS),
        ("prefill-0", "pdq_publish_seconds", {}, NUM_REQUESTS),
        ("prefill-0", "vllm:request_queue_time_seconds", {}, NUM_REQUESTS),
        ("prefill-0", "vllm:request_prefill_time_seconds", {}, NUM_REQUESTS),
        ("decode-0", "pdq_queue_seconds", {"queue": "decode"}, NUM_REQUESTS),
        ("decode-0", "pdq_kv_wait_seconds", {}, NUM_REQUESTS),
        ("decode-0", "pdq_kv_pull_seconds", {}, NUM_REQUESTS),
        ("decode-0", "pdq_decode_seconds", {}, NUM_REQUESTS),
        ("decode-0", "pdq_decode_step_seconds", {}, NUM_REQUESTS * (NUM_TOKENS - 1)),
        ("decode-0", "pdq_publish_seconds", {}, NUM_REQUESTS * (NUM_TOKENS - 1)),
        ("decode-0", "vllm:request_decode_time_seconds", {}, NUM_REQUESTS),
    ],
)
def test_every_phase_is_counted_once(
    watched: Watched, process: str, metric: str, labels: dict[str, str], count: int
) -> None:
    assert watched.total(process, f"{metric}_count", **labels) == count
    assert watched.total(process, f"{metric}_bucket", le="+Inf", **labels) == count


def test_sums_and_counters_say_what_was_sent(watched: Watched) -> None:
    num_cached = 32  # of the 40 tokens: two whole blocks, for all but the first request
    assert watched.total("api-0", "pdq_prompt_tokens_sum") == NUM_REQUESTS * len(PROMPT)
    assert watched.total("api-0", "pdq_output_tokens_sum") == NUM_REQUESTS * NUM_TOKENS
    assert watched.total("api-0", "vllm:prompt_tokens_total") == NUM_REQUESTS * len(PROMPT)
    assert watched.total("api-0", "vllm:generation_tokens_total") == NUM_REQUESTS * NUM_TOKENS
    assert watched.total("api-0", "pdq_sequences_total", finish_reason="length") == NUM_REQUESTS
    assert watched.total("api-0", "vllm:request_success_total", finished_reason="length") == NUM_REQUESTS
    assert watched.total("api-0", "pdq_http_responses_total", route="/generate_stream", status="200") == NUM_REQUESTS
    assert watched.total("decode-0", "pdq_decode_batch_sequences_sum") == NUM_REQUESTS * (NUM_TOKENS - 1)
    assert watched.total("decode-0", "pdq_kv_pair_pulls_total", transport="shared_memory") == NUM_REQUESTS
    for process in ("api-0", "prefill-0"):  # by its heartbeat, and from itself
        wait_until(
            lambda process=process: (  # type: ignore[misc]
                watched.total(process, "pdq_prefix_hit_tokens_total", role="prefill") == num_cached * (NUM_REQUESTS - 1)
            ),
            5,
            "a heartbeat says so",
        )
        assert watched.total(process, "pdq_prefix_queried_tokens_total") == NUM_REQUESTS * len(PROMPT)
    assert watched.total("api-0", "vllm:prefix_cache_hits_total") == num_cached * (NUM_REQUESTS - 1)


def test_phases_add_up_to_what_the_client_waits_for(watched: Watched) -> None:
    def mean_s(process: str, metric: str) -> float:
        return watched.total(process, f"{metric}_sum") / watched.total(process, f"{metric}_count")

    first_token_s = mean_s("api-0", "pdq_time_to_first_token_seconds")
    parts_s = mean_s("prefill-0", "pdq_prefill_seconds") + mean_s("api-0", "pdq_admission_seconds")
    assert parts_s / 2 < first_token_s < mean_s("api-0", "pdq_sequence_seconds")
    assert 0 < mean_s("decode-0", "pdq_kv_pull_seconds") < mean_s("api-0", "pdq_sequence_seconds")


def test_what_is_exposed_is_what_the_catalogue_says(watched: Watched) -> None:
    known = {name for metric in METRICS.values() for name in exposed_names(metric)}
    exposed = {
        name
        for process in ("api-0", "prefill-0", "decode-0")
        for name, _ in watched.figures(process)
        if name.startswith("pdq_")
    }
    # No pull fails here, and there are no batches.
    of_batches = {"pdq_batches_ended_total", "pdq_batch_lines_total", "pdq_webhooks_total"}
    unused = ({"pdq_kv_pull_failures_total"} | of_batches) - exposed
    assert exposed == known - unused


def span_of(watched: Watched, trace_id: str, service: str, name: str) -> Span:
    (span,) = [span for span in watched.collector.of_trace(trace_id) if (span.service, span.name) == (service, name)]
    return span


def test_a_trace_goes_through_every_process(watched: Watched) -> None:
    headers = {"traceparent": f"00-{TRACE_ID}-{CLIENT_SPAN}-01", "X-Request-Id": "traced"}
    body = {"inputs": PROMPT, "parameters": PARAMETERS | {"do_sample": True, "temperature": 0.5}}
    assert httpx.post(watched.cluster.url + "/generate", json=body, headers=headers, timeout=30).status_code == 200
    wanted = {
        ("pdq-api", "text_completion llama"),
        ("pdq-api", "stream"),
        ("pdq-prefill", "queue prefill"),
        ("pdq-prefill", "prefill"),
        ("pdq-prefill", "offer"),
        ("pdq-decode", "queue decode"),
        ("pdq-decode", "kv_pull"),
        ("pdq-decode", "decode"),
    }
    wait_until(lambda: len(watched.collector.of_trace(TRACE_ID)) >= len(wanted), 10, "every process sends its spans")
    spans = watched.collector.of_trace(TRACE_ID)
    assert {(span.service, span.name) for span in spans} == wanted and len(spans) == len(wanted)
    root = span_of(watched, TRACE_ID, "pdq-api", "text_completion llama")
    assert root.parent_id == CLIENT_SPAN and not root.is_error
    assert {span.parent_id for span in spans if span is not root} == {root.span_id}
    assert {span.attributes["pdq.request_id"] for span in spans} == {"traced"}
    assert root.attributes["gen_ai.usage.input_tokens"] == len(PROMPT)
    assert root.attributes["gen_ai.usage.output_tokens"] == NUM_TOKENS
    assert root.attributes["gen_ai.request.temperature"] == 0.5
    assert root.attributes["gen_ai.response.finish_reasons"] == ["length"]
    assert root.attributes["gen_ai.provider.name"] == "pdq"
    for span in spans:  # on one host there is one clock; entries of queues are stamped to the millisecond
        assert root.began_ns - 2_000_000 <= span.began_ns <= span.ended_ns <= root.ended_ns + 50_000_000, span


def test_who_does_not_ask_is_not_traced(watched: Watched) -> None:
    """The share is 0: neither the streams of the fixture nor a trace that its client has not chosen."""
    trace_id = "a" * 32
    headers = {"traceparent": f"00-{trace_id}-{CLIENT_SPAN}-00"}
    body = {"inputs": PROMPT, "parameters": PARAMETERS}
    assert httpx.post(watched.cluster.url + "/generate", json=body, headers=headers, timeout=30).status_code == 200
    asked = {"traceparent": f"00-{'b' * 32}-{CLIENT_SPAN}-01"}
    assert httpx.post(watched.cluster.url + "/generate", json=body, headers=asked, timeout=30).status_code == 200
    wait_until(lambda: len(watched.collector.of_trace("b" * 32)) == 8, 10, "the later one has come")
    assert {span.trace_id for span in watched.collector.spans} <= {TRACE_ID, "b" * 32}


def test_a_refusal_is_counted_and_logged_with_its_id_and_no_prompt(watched: Watched) -> None:
    before = watched.total("api-0", "pdq_http_responses_total", status="417")
    secret = "a prompt that nobody may read in a log"
    body = {"inputs": secret, "parameters": {"max_new_tokens": 100_000}}
    answer = httpx.post(watched.cluster.url + "/generate", json=body, headers={"X-Request-Id": "too-long"})
    assert answer.status_code == 417
    assert watched.total("api-0", "pdq_http_responses_total", route="/generate", status="417") == before + 1
    watched.cluster.generate(secret, **PARAMETERS)
    logs = [watched.cluster.log(name) for name in watched.cluster.processes]
    assert not any(secret in log for log in logs)
    lines = [json.loads(line) for line in watched.cluster.log("api-0").splitlines() if line.startswith("{")]
    ended = [line for line in lines if line["event"] == "request_ended"]
    assert ended and all(re.fullmatch(r"[\w.-]+", line["request_id"]) for line in ended)
    assert ended[-1]["output_tokens"] == NUM_TOKENS and ended[-1]["finish_reason"] == "length"


def test_a_killed_decode_worker_shows_in_reclaimed_jobs(watched: Watched) -> None:
    cluster = watched.cluster
    watched.start_decode()
    wait_until(lambda: cluster.num_ready() == 3, 60, "the second decode worker is ready")
    frames: list[int] = []

    def read() -> None:
        frames.extend(1 for _ in cluster.stream(PROMPT, max_new_tokens=600, ignore_eos=True))

    reader = threading.Thread(target=read)
    reader.start()
    victim = cluster.busy_process(Role.DECODE)
    (survivor,) = {"decode-0", "decode-1"} - {victim}
    cluster.kill(victim)
    reader.join(60)
    assert len(frames) == 600
    assert watched.total(survivor, "pdq_jobs_reclaimed_total") == 1
    wait_until(lambda: watched.total("api-0", "pdq_jobs_reclaimed_total") == 1, 5, "the API says so too")
    assert watched.total("api-0", "pdq_worker_ready", role="decode") == 1
