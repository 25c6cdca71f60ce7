"""Deadlines, classes and refusals on a cluster of real processes, as a client sees them."""

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from messages.worker_status import Role
from tests.end_to_end.cluster import Cluster, running_cluster, wait_until

NUM_WAITING = 6


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory, redis_url: str, tiny_dir: Path) -> Iterator[Cluster]:
    """One decode slot, six places in the queue, leases that outlast the time a worker is stopped."""
    env = {
        "PDQ_DECODE__MAX_RUNNING": "1",
        "PDQ_QUEUE__MAX_WAITING": str(NUM_WAITING),
        "PDQ_QUEUE__LEASE_S": "20",
        "PDQ_QUEUE__CLOCK_TOLERANCE_S": "0.05",
        "PDQ_PREFILL__TOKEN_BUDGET": "16",
        "PDQ_DECODE__LOCAL_PREFILL": "never",  # prefill workers are stopped to make prompts wait
        "PDQ_KV_TRANSFER__RELEASE_CHECK_S": "0.1",
    }
    with running_cluster(tmp_path_factory.mktemp("narrow"), redis_url, tiny_dir, env) as running:
        yield running


def post(cluster: Cluster, prompt: list[int], num_tokens: int, **headers: str) -> httpx.Response:
    parameters = {"max_new_tokens": num_tokens, "ignore_eos": True}
    named = {f"X-{name.replace('_', '-')}": value for name, value in headers.items()}
    body = {"inputs": prompt, "parameters": parameters}
    return httpx.post(cluster.url + "/generate", json=body, headers=named, timeout=60)


def in_background(work: Any) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def metric(cluster: Cluster, name: str) -> float:
    lines = httpx.get(cluster.url + "/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def wait_empty(cluster: Cluster) -> None:
    wait_until(lambda: metric(cluster, "pdq_queue_jobs{") == 0, 10, "no job is left")
    wait_until(cluster.all_blocks_are_free, 10, "no block is left")


def test_what_is_refused_costs_no_prefill_and_what_is_urgent_goes_first(narrow: Cluster) -> None:
    ends: list[str] = []

    def client(name: str, number: int) -> None:
        answer = post(narrow, [10 * number + place for place in range(20)], 4, Priority=name)
        ends.append(name if answer.status_code == 200 else str(answer.status_code))

    assert metric(narrow, "pdq_prefilled_tokens_total") == 0  # the first test of this cluster
    narrow.kill("prefill-0", signal.SIGSTOP)
    try:
        threads = []
        for number, name in enumerate(["low", "low", "low", "normal", "high"]):
            threads.append(in_background(lambda name=name, number=number: client(name, number)))
            wait_until(lambda: metric(narrow, "pdq_queue_jobs{") == len(threads), 10, "it waits")
        took_s = []
        body = {"inputs": list(range(100)), "parameters": {}}
        with httpx.Client(base_url=narrow.url, headers={"X-Priority": "low"}) as kept:
            for _ in range(10):
                began = time.perf_counter()
                answer = kept.post("/generate", json=body)
                took_s.append(time.perf_counter() - began)
                assert answer.status_code == 503
                assert 1 <= int(answer.headers["retry-after"]) <= 30
        assert sorted(took_s)[5] < 0.05
    finally:
        narrow.kill("prefill-0", signal.SIGCONT)
    for thread in threads:
        thread.join(30)
    # The worker's wait was under way when it was stopped, and the first low one ended it.
    assert ends in (["low", "high", "normal", "low", "low"], ["high", "normal", "low", "low", "low"])
    wait_until(lambda: metric(narrow, "pdq_prefilled_tokens_total") >= 5 * 20, 5, "the prefill is told")
    wait_empty(narrow)
    assert metric(narrow, "pdq_prefilled_tokens_total") == 5 * 20


@pytest.mark.parametrize("stopped", [Role.PREFILL, Role.DECODE])
def test_a_late_request_is_a_504_wherever_it_is(narrow: Cluster, stopped: Role) -> None:
    narrow.kill(f"{stopped}-0", signal.SIGSTOP)  # it waits in the queue; or for its second token
    try:
        began = time.monotonic()
        answer = post(narrow, list(range(40)), 30, Request_Timeout="0.5")
        took_s = time.monotonic() - began
    finally:
        narrow.kill(f"{stopped}-0", signal.SIGCONT)
    assert answer.status_code == 504
    assert answer.json()["message"].startswith("the request was not done within its 0.5 s (Status code: 504): ")
    assert 0.5 <= took_s < 1.5
    wait_empty(narrow)
    assert post(narrow, list(range(40)), 3).status_code == 200


def test_a_stream_whose_time_is_over_has_one_end(narrow: Cluster) -> None:
    body = {"inputs": [1, 2, 3], "parameters": {"max_new_tokens": 8000, "ignore_eos": True}}
    answer = httpx.post(narrow.url + "/generate_stream", json=body, headers={"X-Request-Timeout": "0.5"}, timeout=20)
    frames = [line for line in answer.text.splitlines() if line]
    assert answer.status_code == 200 and len(frames) > 2
    assert [number for number, frame in enumerate(frames) if '"error"' in frame] == [len(frames) - 1]
    assert "(Status code: 504)" in frames[-1]
    wait_empty(narrow)
