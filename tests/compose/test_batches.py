"""The profiles `batch` and `flower`: a batch that outlives the container that ran it, and Flower's page about it."""

import json
import socket
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.compose.cluster import ComposeCluster, wait_until

pytestmark = [pytest.mark.compose, pytest.mark.timeout(600)]

SERVICES = ("batch", "beat", "flower")
NUM_LINES = 24


@pytest.fixture(scope="module")
def flower_url() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture(scope="module")
def batches(cluster: ComposeCluster, flower_url: str) -> Iterator[ComposeCluster]:
    """The cluster with two batch workers, the clock and Flower; afterwards it is as before."""
    port = flower_url.rpartition(":")[2]
    with cluster.extended("tests/compose/batches.yaml", COMPOSE_PROFILES="batch,flower", FLOWER_PORT=port):
        cluster.up(prefill=1, decode=1, batch=2)
        yield cluster
        cluster.compose("rm", "--stop", "--force", *SERVICES)


def line(number: int) -> dict[str, Any]:
    body = {"prompt": f"The number {number} is", "max_tokens": 12, "seed": number, "ignore_eos": True}
    return {"custom_id": f"line-{number}", "method": "POST", "url": "/v1/completions", "body": body}


def num_admitted(url: str) -> float:
    """Prompts that the API has put on the queue since its start."""
    (row,) = [row for row in httpx.get(f"{url}/metrics").text.splitlines() if row.startswith("pdq_prompt_tokens_count")]
    return float(row.split()[-1])


def test_a_batch_outlives_its_worker_and_runs_no_line_twice(batches: ComposeCluster) -> None:
    before = num_admitted(batches.url)
    with httpx.Client(base_url=batches.url, timeout=30) as client:
        content = "\n".join(json.dumps(line(number)) for number in range(NUM_LINES)).encode()
        file = client.post("/v1/files", data={"purpose": "batch"}, files={"file": ("lines.jsonl", content)}).json()
        asked = {"input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "1h"}
        batch_id = client.post("/v1/batches", json=asked).json()["id"]

        def seen() -> dict[str, Any]:
            answered: dict[str, Any] = client.get(f"/v1/batches/{batch_id}").json()
            return answered

        wait_until(lambda: seen()["request_counts"]["completed"] >= 4, 60, "the first lines")
        victim, other = batches.containers("batch")
        batches.docker("kill", victim)
        assert seen()["request_counts"]["completed"] < NUM_LINES - 4, "the batch had ended before its worker was killed"
        wait_until(lambda: seen()["status"] == "completed", 60, "the batch's end")
        assert batches.containers("batch") == [other]
        found = seen()
        assert found["request_counts"] == {"total": NUM_LINES, "completed": NUM_LINES, "failed": 0}
        rows = [json.loads(row) for row in client.get(f"/v1/files/{found['output_file_id']}/content").text.splitlines()]
        assert [row["custom_id"] for row in rows] == [f"line-{number}" for number in range(NUM_LINES)]
        assert num_admitted(batches.url) - before == NUM_LINES, "what ran at the kill was waited for, not sent again"
        alone = client.post("/v1/completions", json=line(7)["body"]).json()
        assert rows[7]["response"]["body"]["choices"] == alone["choices"]


def test_flower_shows_the_workers_and_what_they_did(batches: ComposeCluster, flower_url: str) -> None:
    workers = batches.containers("batch")

    def shown() -> Counter[str]:
        rows = httpx.get(f"{flower_url}/workers", params={"json": "1"}, timeout=30).json()["data"]
        return Counter({row["hostname"].rpartition("@")[2]: row.get("task-succeeded") or 0 for row in rows})

    wait_until(lambda: any(shown()[worker[:12]] for worker in workers), 30, "a worker with tasks that succeeded")


def test_redis_refused_no_role_what_it_needs(batches: ComposeCluster) -> None:
    look = 'redis-cli --user admin --no-auth-warning --pass "$(cat /run/pdq-admin/redis_password)" acl log'
    assert batches.compose("exec", "-T", "redis", "sh", "-c", look).strip() == ""
