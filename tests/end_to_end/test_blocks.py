"""Blocks under pressure: preemption, clients that leave, reward models; nothing leaks and nothing changes the text."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from messages.worker_status import Role
from tests.end_to_end.cluster import Cluster, running_cluster, wait_until


def test_a_client_that_leaves_frees_every_block(cluster: Cluster) -> None:
    frames = cluster.stream("Tell me a very long story.", max_new_tokens=8000, ignore_eos=True)
    for _ in range(5):
        next(frames)
    wait_until(lambda: not cluster.all_blocks_are_free(), 3, "the heartbeat tells of held blocks")
    frames.close()  # type: ignore[attr-defined]
    wait_until(lambda: cluster.all_blocks_are_free(), 3, "both workers' blocks are free again")
    assert all(status.num_running == 0 for status in cluster.workers())


def test_preemption_changes_no_text(cluster: Cluster, tmp_path: Path, redis_url: str, tiny_dir: Path) -> None:
    prompts = [[(31 * number + place) % 250 for place in range(40)] for number in range(4)]

    def run_all(on: Cluster) -> list[dict]:  # type: ignore[type-arg]
        with ThreadPoolExecutor(len(prompts)) as clients:
            ask = {"max_new_tokens": 60, "ignore_eos": True}
            return list(clients.map(lambda prompt: on.generate(prompt, **ask), prompts))

    expected = run_all(cluster)
    # 4 sequences grow to 7 blocks each; 16 blocks hold two of them.
    with running_cluster(tmp_path, redis_url, tiny_dir, {}, decode=0, wait=False) as tight:
        tight.start("decode", PDQ_KV__NUM_BLOCKS="16")
        wait_until(lambda: tight.health() == 200, 60, "the tight decode worker is ready")
        assert run_all(tight) == expected
        assert "sequence_preempted" in tight.log("decode-0")
        wait_until(lambda: tight.all_blocks_are_free(), 3, "every block is free again")


def test_a_prompt_that_no_worker_can_hold_is_refused(cluster: Cluster) -> None:
    capacity = min(status.capacity_tokens for status in cluster.workers(Role.DECODE))
    limit = min(capacity, 8192)
    for route in ("/generate", "/generate_stream"):
        answer = httpx.post(
            cluster.url + route,
            json={"inputs": [5] * (limit - 10), "parameters": {"max_new_tokens": 11}},
        )
        assert answer.status_code == 417
        assert f"max_new_tokens 11 > {limit}" in " ".join(answer.json()["message"].split())


@pytest.mark.parametrize("count", [1, 2])
def test_workers_that_join_share_the_work(cluster: Cluster, count: int) -> None:
    before = {status.worker_id for status in cluster.workers()}
    names = [cluster.start(role) for role in ("prefill", "decode")[:count]]
    try:
        wait_until(
            lambda: cluster.num_ready() == len(before) + count,
            60,
            "the new workers are ready",
        )
        with ThreadPoolExecutor(8) as clients:
            prompts = [[(13 * number + place) % 250 for place in range(90)] for number in range(8)]
            bodies = list(
                clients.map(lambda prompt: cluster.generate(prompt, max_new_tokens=24, ignore_eos=True), prompts)
            )
        assert [body["count_output_tokens"] for body in bodies] == [24] * 8
    finally:
        for name in names:
            assert cluster.stop(name) == 0
    wait_until(
        lambda: {status.worker_id for status in cluster.workers()} == before, 5, "only the first workers are left"
    )
