"""A cluster as compose.yaml secures it: every process under its own Redis user, API keys asked for, and debug logs.

In all of it the prompt, the output, the API key and the passwords are marked, so that a log that holds one is found.
"""

import asyncio
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from api.key_file import ApiKey, Scope, add_key, hash_of, new_key
from broker.keys import Keys
from messages.wire import decode
from messages.worker_status import Role, WorkerStatus
from tests.end_to_end.cluster import Cluster, wait_until
from tests.secured_redis import ROLES, SecuredRedis, secured_redis

MARKER = "zanzibar"
PREFIX = "secured"
NUM_BLOCKS = 40  # of 16 tokens: two long sequences do not fit, so one is preempted


@dataclass(frozen=True)
class Secured:
    cluster: Cluster
    redis: SecuredRedis
    key: str
    admin_key: str

    def post(self, path: str, body: object, timeout_s: float = 60) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.key}"}
        return httpx.post(self.cluster.url + path, json=body, headers=headers, timeout=timeout_s)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory, redis_binary: str, tiny_dir: Path) -> Iterator[Secured]:
    """1 prefill + 2 decode workers on the tiny model."""
    folder = tmp_path_factory.mktemp("secured")
    keys_file, key, admin_key, batch_key = folder / "keys", new_key(), new_key(), new_key()
    add_key(keys_file, ApiKey("alice", hash_of(key), requests_per_min=1000, tokens_per_min=10**6, max_in_flight=4))
    add_key(keys_file, ApiKey("root", hash_of(admin_key), Scope.ADMIN))
    add_key(keys_file, ApiKey("batches", hash_of(batch_key)))
    (folder / "batch-key").write_text(batch_key)
    with tempfile.TemporaryDirectory(prefix="pdq-redis-") as redis_folder:
        with secured_redis(Path(redis_folder), redis_binary, PREFIX) as redis:
            env = {
                "PDQ_REDIS__KEY_PREFIX": PREFIX,
                "PDQ_SECURITY__KEYS_FILE": str(keys_file),
                "PDQ_LOG__LEVEL": "debug",
                "PDQ_KV__NUM_BLOCKS": str(NUM_BLOCKS),
            }
            cluster = Cluster(folder, redis.url, tiny_dir, env)
            try:
                for role in ("prefill", "decode", "decode", "api"):
                    cluster.start(role, **redis.environment(role))
                batch = {"PDQ_BATCH__API_URL": cluster.url, "PDQ_BATCH__API_KEY_FILE": str(folder / "batch-key")}
                cluster.start(
                    "batch", **redis.environment("batch"), **batch, PDQ_BATCH__TEND_S="0.2", PDQ_BATCH__EVENTS="true"
                )
                cluster.wait_healthy()
                yield Secured(cluster, redis, key, admin_key)
            finally:
                cluster.close()


def generate_body(num_tokens: int = 8, **more: object) -> dict[str, object]:
    return {"inputs": f"{MARKER} " * 5, "parameters": {"max_new_tokens": num_tokens, "ignore_eos": True} | more}


def test_requests_go_through_under_every_roles_own_user(secured: Secured) -> None:
    """Whole ones, streams, several choices, one that stops early, preempted ones, one whose client leaves, probes."""
    answer = secured.post("/generate", generate_body(n=2, best_of=2))
    assert answer.status_code == 200 and len(answer.json()["generated_text"]) == 2
    assert secured.post("/generate_stream", generate_body()).text.count("data:") == 8
    assert secured.post("/generate", generate_body(stop_sequences=[MARKER])).status_code == 200

    async def several() -> list[int]:
        headers = {"X-API-Key": secured.key}
        async with httpx.AsyncClient(base_url=secured.cluster.url, headers=headers, timeout=60) as client:
            long = [client.post("/generate", json=generate_body(400)) for _ in range(4)]
            return [answer.status_code for answer in await asyncio.gather(*long)]

    assert asyncio.run(several()) == [200] * 4
    with pytest.raises(httpx.TimeoutException):
        secured.post("/generate", generate_body(550), timeout_s=0.3)
    resume_and_cancel(secured)
    headers = {"X-API-Key": secured.admin_key}
    for path in ("/metrics", "/token_load", "/health", "/readiness"):
        assert httpx.get(secured.cluster.url + path, headers=headers, timeout=10).status_code == 200, path

    def is_idle() -> bool:
        load = httpx.get(secured.cluster.url + "/token_load", headers=headers, timeout=10).json()
        return bool(load["current_load"] == 0)

    wait_until(is_idle, 10, "all sequences have ended")
    assert secured.redis.denied() == []


def test_a_batch_is_its_keys_and_run_under_the_batch_workers_own_user(secured: Secured) -> None:
    row = {"custom_id": "a", "method": "POST", "url": "/generate", "body": generate_body()}
    own = {"X-API-Key": secured.key}
    with httpx.Client(base_url=secured.cluster.url, headers=own, timeout=60) as client:
        files = {"file": ("a.jsonl", json.dumps(row))}
        file_id = client.post("/v1/files", data={"purpose": "batch"}, files=files).json()["id"]
        asked = {"input_file_id": file_id, "endpoint": "/generate", "completion_window": "1h"}
        foreign = {"X-API-Key": secured.admin_key}
        assert client.post("/v1/batches", json=asked, headers=foreign).status_code == 404
        batch_id = client.post("/v1/batches", json=asked).json()["id"]
        place = f"/v1/batches/{batch_id}"
        wait_until(lambda: client.get(place).json()["status"] == "completed", 30, "the batch's end")
        output_id = client.get(place).json()["output_file_id"]
        (answered,) = map(json.loads, client.get(f"/v1/files/{output_id}/content").text.splitlines())
        assert answered["custom_id"] == "a" and answered["response"]["body"]["count_output_tokens"] == 8
        for path in (place, f"/v1/files/{file_id}", f"/v1/files/{file_id}/content", f"/v1/files/{output_id}"):
            assert client.get(path, headers=foreign).status_code == 404
        assert client.post(f"{place}/cancel", headers=foreign).status_code == 404
        assert client.delete(f"/v1/files/{file_id}", headers=foreign).status_code == 404
        assert client.get("/v1/files", headers=foreign).json()["data"] == []
        assert client.get("/v1/batches", headers=foreign).json()["data"] == []
        assert client.post(f"{place}/cancel").status_code == 409
        assert client.delete(f"/v1/files/{file_id}").json()["deleted"]
    assert secured.redis.denied() == []


def resume_and_cancel(secured: Secured) -> None:
    """A detached request of high priority: read again, resumed, unknown to others, cancelled."""
    own = {"X-API-Key": secured.key}
    extra = {"X-Request-Id": "kept", "X-Detached": "true", "X-Priority": "high", "X-Request-Timeout": "60"}
    with httpx.Client(base_url=secured.cluster.url, headers=own, timeout=60) as client:
        with client.stream("POST", "/generate_stream", json=generate_body(550), headers=extra) as answer:
            assert answer.status_code == 200
            next(answer.iter_lines())
        with client.stream("GET", "/requests/kept/stream?after=0") as answer:
            assert answer.status_code == 200
            next(answer.iter_lines())
        assert client.get("/requests/kept").status_code == 200
        assert client.get("/requests/kept", headers={"X-API-Key": secured.admin_key}).status_code == 404
        assert client.delete("/requests/kept").json()["cancelled_choices"] == [0]


def test_a_killed_workers_jobs_are_taken_over(secured: Secured) -> None:
    async def main() -> int:
        headers = {"X-API-Key": secured.key}
        async with httpx.AsyncClient(base_url=secured.cluster.url, headers=headers, timeout=60) as client:
            asking = asyncio.create_task(client.post("/generate", json=generate_body(500)))
            victim = await asyncio.to_thread(busy, secured)
            secured.cluster.kill(victim)
            return (await asking).status_code

    assert asyncio.run(main()) == 200
    assert secured.redis.denied() == []


def busy(secured: Secured) -> str:
    """The decode process that has a running sequence."""
    names = {process.pid: name for name, process in secured.cluster.processes.items()}
    found: list[str] = []

    def look() -> bool:
        with secured.redis.client("admin") as admin:
            statuses = admin.hgetall(Keys(PREFIX).workers()).values()
        workers = [decode(status, WorkerStatus) for status in statuses]
        found[:] = [names[worker.pid] for worker in workers if worker.role is Role.DECODE and worker.num_running]
        return bool(found)

    wait_until(look, 10, "a busy decode worker")
    return found[0]


def test_no_log_holds_a_prompt_a_key_or_a_password(secured: Secured) -> None:
    body = generate_body()
    for headers in ({"X-API-Key": f"pdq-{MARKER}"}, {"Authorization": f"Bearer {secured.key}x"}, {}):
        refused = httpx.post(secured.cluster.url + "/generate", json=body, headers=headers, timeout=10)
        assert refused.status_code == 401
    wrong: list[dict[str, object]] = [
        {"inputs": MARKER, "parameters": {"logit_bias": {MARKER: 1}}},
        {"inputs": [MARKER], "parameters": {}},
        {"inputs": MARKER, "parameters": {"stop_sequences": [MARKER] * 11}},
    ]
    for each in wrong:
        assert secured.post("/generate", each).status_code == 417
    text = secured.post("/generate", generate_body(40)).json()["generated_text"][0]
    assert len(text) > 30

    secrets = [MARKER, secured.key, secured.admin_key, hash_of(secured.key), text]
    secrets += [secured.redis.password_file(role).read_text().strip() for role in ROLES]
    for name in secured.cluster.processes:
        log = secured.cluster.log(name)
        # The API says nothing at that level today.
        assert name.startswith("api") or '"debug"' in log, f"{name} does not log at debug level: this proves nothing"
        for secret in secrets:
            assert secret not in log and secret[:30] not in log, f"{name}'s log holds {secret[:4]}..."
    assert MARKER not in (secured.redis.folder / "redis.log").read_text()
