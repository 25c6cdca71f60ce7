"""/metrics: what the registry says, in a form that Prometheus' own parser reads."""

from prometheus_client.parser import text_string_to_metric_families

from messages import Role, TransferCount
from settings import Settings
from tests.api.fake_cluster import fake_cluster, run, status


def test_figures_of_every_worker(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings, workers=False) as cluster:
            counts = {"nixl": TransferCount(pulls=3, failures=1, num_bytes=4096), "shared_memory": TransferCount()}
            await cluster.beat(status(Role.PREFILL, num_blocks=8, free_blocks=6, num_running=2, idle_s=0.5))
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

    run(main())
