"""The CPU cluster in real containers: it serves, scales both ways, and outlives a killed container.

Each test asks for the number of workers that it needs. That `down` leaves nothing is asserted by the cluster's fixture.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.compose.cluster import ComposeCluster, wait_until

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1200)]

PROMPT = "The history of the railway began"
NUM_TOKENS = 80
NUM_TOKENS_LONG = 280  # still going when we have found out who is at it


@pytest.fixture(scope="module")
def expected(cluster: ComposeCluster) -> str:
    """What PROMPT is answered before anything happens to the cluster."""
    return cluster.generate(PROMPT, max_new_tokens=NUM_TOKENS, ignore_eos=True)


def streamed_text(cluster: ComposeCluster, num_tokens: int = NUM_TOKENS) -> str:
    """PROMPT's answer over SSE."""
    return checked_text(list(cluster.stream(PROMPT, max_new_tokens=num_tokens, ignore_eos=True)), num_tokens)


def checked_text(frames: list[dict[str, Any]], num_tokens: int) -> str:
    """The text of the frames, which hold every token once, in order, and one end."""
    assert [frame["token"]["count_output_tokens"] for frame in frames] == list(range(1, num_tokens + 1))
    assert [frame["finished"] for frame in frames] == [False] * (num_tokens - 1) + [True]
    return "".join(frame["token"]["text"] for frame in frames)


def busy_container(cluster: ComposeCluster, service: str) -> str:
    """The id of a container of `service` that has running sequences; waits until there is one."""
    found: list[str] = []

    def look() -> bool:
        hosts = [worker["host"] for worker in cluster.ready_workers() if worker["num_running"]]
        found[:] = [one for one in cluster.containers(service) if any(one.startswith(host) for host in hosts)]
        return bool(found)

    wait_until(look, 15, f"a busy {service} container")
    return found[0]


def test_it_answers(cluster: ComposeCluster, expected: str) -> None:
    text = cluster.generate("What is AI?", max_new_tokens=16)
    assert text.startswith(" AI refers to machines that can perform tasks that typically require human intelligence")
    assert streamed_text(cluster) == expected


def test_redis_wants_the_password(cluster: ComposeCluster) -> None:
    assert "NOAUTH" in cluster.compose("exec", "-T", "redis", "redis-cli", "ping")
    assert "requirepass" not in cluster.compose("config")
    look = ("redis-cli --user admin --no-auth-warning", '--pass "$(cat /run/pdq-admin/redis_password)"')
    said = cluster.compose("exec", "-T", "redis", "sh", "-c", f"{' '.join(look)} acl log")
    assert said.strip() == "", "no role was refused what it needs"


def test_each_container_holds_its_own_password_alone(cluster: ComposeCluster) -> None:
    kept = {
        role: cluster.compose("exec", "-T", role, "ls", "/run/pdq").split() for role in ("api", "prefill", "decode")
    }
    assert "redis_password" in kept["api"]
    passwords = {role: cluster.compose("exec", "-T", role, "cat", "/run/pdq/redis_password") for role in kept}
    assert len(set(passwords.values())) == 3
    assert cluster.compose("exec", "-T", "redis", "ls", "/run/pdq").split() == ["users.acl"]


def test_api_keys_are_made_in_a_container(cluster: ComposeCluster) -> None:
    key = cluster.compose("run", "--rm", "--no-TTY", "key", "new", "alice").split()[-1]
    assert key.startswith("pdq-")
    assert "alice" in cluster.compose("exec", "-T", "api", "pdq", "key", "list", "--file", "/run/pdq-keys/keys")


def test_more_workers_share_the_work(cluster: ComposeCluster, expected: str) -> None:
    cluster.up(prefill=2, decode=3)
    assert (cluster.num_ready("prefill"), cluster.num_ready("decode")) == (2, 3)
    # Twice what one decode worker takes (PDQ_DECODE__MAX_RUNNING), so that several must be at it.
    num_requests = 2 * cluster.max_running
    with ThreadPoolExecutor(num_requests) as clients:
        answers = [clients.submit(streamed_text, cluster) for _ in range(num_requests)]
        wait_until(
            lambda: sum(1 for one in cluster.ready_workers() if one["role"] == "decode" and one["num_running"]) > 1,
            60,
            "two decode workers are busy at once",
        )
        assert [answer.result() for answer in answers] == [expected] * num_requests


def test_a_killed_decode_container_loses_no_stream(cluster: ComposeCluster) -> None:
    cluster.up(prefill=1, decode=2)
    expected = streamed_text(cluster, NUM_TOKENS_LONG)
    frames = []
    victim = ""
    for frame in cluster.stream(PROMPT, max_new_tokens=NUM_TOKENS_LONG, ignore_eos=True):
        frames.append(frame)
        if len(frames) == 4:
            victim = busy_container(cluster, "decode")
            cluster.docker("kill", victim)
            load = httpx.get(f"{cluster.url}/token_load", timeout=10).json()
            assert load["logical_max_load"] > 0, "the stream had ended before its worker was killed"
    assert checked_text(frames, NUM_TOKENS_LONG) == expected
    assert victim not in cluster.containers("decode")


def test_scaling_down_loses_no_stream(cluster: ComposeCluster, expected: str) -> None:
    cluster.up(prefill=2, decode=2)
    num_requests = 2 * cluster.max_running
    with ThreadPoolExecutor(num_requests) as clients:
        answers = [clients.submit(streamed_text, cluster) for _ in range(num_requests)]
        busy_container(cluster, "decode")
        cluster.up(prefill=1, decode=1)
        assert [answer.result() for answer in answers] == [expected] * num_requests
    assert (len(cluster.containers("prefill")), len(cluster.containers("decode"))) == (1, 1)
    assert (cluster.num_ready("prefill"), cluster.num_ready("decode")) == (1, 1)
