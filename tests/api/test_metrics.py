"""/metrics: what the registry says, in a form that Prometheus' own parser reads."""

import asyncio
import contextlib

from prometheus_client.parser import text_string_to_metric_families

from api.generation import Departure, Generation
from messages.kv_transfer import TransferCount
from messages.request import Priority
from messages.token_event import FinishReason, TokenEvent
from messages.worker_status import Role
from settings.loading import Settings
from settings.observability import MetricsSettings
from tests.api.fake_cluster import FakeCluster, fake_cluster, run, status
from tests.broker.samples import make_request


def test_figures_of_every_worker(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings, workers=False, takes_jobs=False) as cluster:
            counts = {"nixl": TransferCount(pulls=3, failures=1, num_bytes=4096), "shared_memory": TransferCount()}
            work = {"prefilled_tokens": 70, "tokens_per_s": 35.0}
            await cluster.beat(status(Role.PREFILL, num_blocks=8, free_blocks=6, num_running=2, idle_s=0.5, **work))
            await cluster.broker.requests.create(make_request(priority=Priority.LOW))
            await cluster.beat(status(Role.DECODE, transfers=counts))
            answer = await cluster.client.get("/metrics")
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/plain; version=")
            seen = {
                (sample.name, *sorted(sample.labels.values())): sample.value
                for family in text_string_to_metric_families(answer.text)
                for sample in family.samples
            }
            assert seen["pdq_kv_used_ratio", "prefill", "prefill-0"] == 0.25
            assert seen["pdq_kv_capacity_tokens", "decode", "decode-0"] == 1000
            assert seen["pdq_kv_used_ratio", "decode", "decode-0"] == 0  # a worker that is still loading has no pool
            assert seen["pdq_running_sequences", "prefill", "prefill-0"] == 2
            assert seen["pdq_idle_seconds", "prefill", "prefill-0"] == 0.5
            assert seen["pdq_kv_pulls_total", "decode-0", "nixl"] == 3
            assert seen["pdq_kv_pull_failures_total", "decode-0", "nixl"] == 1
            assert seen["pdq_kv_pulled_bytes_total", "decode-0", "nixl"] == 4096
            assert seen["pdq_kv_pulls_total", "decode-0", "shared_memory"] == 0
            assert seen["pdq_prefilled_tokens_total", "prefill", "prefill-0"] == 70
            assert seen["pdq_prefill_tokens_per_second", "prefill", "prefill-0"] == 35
            assert seen["pdq_queue_jobs", "low", "prefill"] == 1
            assert seen["pdq_queue_jobs", "decode", "high"] == 0

    run(main())


async def figures(cluster: FakeCluster) -> dict[tuple[str, ...], float]:
    """Name and values of the labels -> value."""
    text = (await cluster.client.get("/metrics")).text
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_how_sequences_end_is_told_apart(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings) as cluster:
            text = " one two three four"
            cluster.script = cluster.length_script(text)
            num_tokens = len(cluster.ids(text))
            await cluster.generate(max_new_tokens=16, best_of=2)
            await cluster.generate(max_new_tokens=16, stop_sequences=[" two"])
            error = TokenEvent(finish_reason=FinishReason.ERROR, error="broken", error_status=500)
            cluster.script = cluster.events_script([*cluster.events(cluster.ids(text))[:-1], error])
            assert (await cluster.ask(max_new_tokens=16)).status_code == 500
            seen = await figures(cluster)
            assert seen["pdq_sequences_total", "length"] == 2
            assert seen["pdq_sequences_total", "stop"] == 1
            assert seen["pdq_sequences_total", "error"] == 1
            assert seen["pdq_sequence_seconds_count",] == 3, "a failure is no time that it takes"
            assert seen["pdq_prompt_tokens_count",] == 3, "of requests, not of sequences"
            assert seen["pdq_time_to_first_token_seconds_count",] == 4
            num_stopped = seen["pdq_output_tokens_sum",] - 2 * num_tokens
            assert 0 < num_stopped < num_tokens
            assert seen["pdq_http_responses_total", "/generate", "500"] == 1
            assert seen["pdq_followed_sequences",] == 0

    run(main())


def test_who_left_and_who_was_never_let_in(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings, takes_jobs=False) as cluster:
            body = {"inputs": "What is AI?", "parameters": {"max_new_tokens": 4}}
            for departure in (Departure.CANCEL, Departure.LINGER):
                request = make_request(departure.value, api_id=cluster.services.api_id)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.2), Generation(cluster.services, request, departure) as generation:
                        await generation.collect()
            refused = await cluster.post("/generate", body | {"parameters": {"max_new_tokens": 10**6}})
            assert refused.status_code == 417
            seen = await figures(cluster)
            assert seen["pdq_sequences_total", "abort"] == 1
            assert seen["pdq_sequences_total", "left"] == 1
            assert seen["pdq_admission_seconds_count",] == 2
            assert ("pdq_http_responses_total", "/generate", "417") in seen

    run(main())


def test_without_vllms_names_there_are_none(settings: Settings) -> None:
    async def main() -> None:
        bare = settings.model_copy(update={"metrics": MetricsSettings(vllm_names=False)})
        async with fake_cluster(bare) as cluster:
            assert not any(name.startswith("vllm:") for name, *_ in await figures(cluster))
        async with fake_cluster(settings) as cluster:
            await cluster.beat(status(Role.DECODE, num_blocks=8, free_blocks=6, num_running=2))
            seen = await figures(cluster)
            name = cluster.services.facts.name
            assert seen["vllm:kv_cache_usage_perc", *sorted(("decode-0", name))] == 0.25
            assert seen["vllm:num_requests_running", *sorted(("decode-0", name))] == 2
            assert seen["vllm:num_requests_waiting", "0", name] == 0

    run(main())
