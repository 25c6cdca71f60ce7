"""/metrics: what the registry says, in a form that Prometheus' own parser reads."""

from prometheus_client.parser import text_string_to_metric_families

from messages import Priority, Role, TransferCount
from settings import Settings
from tests.api.fake_cluster import fake_cluster, run, status
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
