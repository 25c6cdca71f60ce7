"""Prefill and decode on two hosts, as far as they can tell: a network namespace and a /dev/shm each, and a cable.

KV can go from one to the other through the network only. Needs root, for the namespaces.
"""

import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from messages.kv_transfer import TransferCount
from messages.worker_status import Role
from tests.end_to_end.cluster import Cluster, running_cluster, wait_until
from tests.tiny_models import greedy, tiny_model, tiny_runner

PROMPT = list(range(40, 240))
NUM_TOKENS = 24


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=10)


def on(host: str) -> tuple[str, ...]:
    """What runs a command on a host: its network, and a /dev/shm that no other has."""
    script = 'mount -t tmpfs tmpfs /dev/shm && exec "$@"'
    return "ip", "netns", "exec", host, "unshare", "--mount", "sh", "-c", script, "sh"


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """Two network namespaces, 10.77.0.1 and 10.77.0.2."""
    tag = uuid.uuid4().hex[:6]
    names = f"pdq-{tag}-1", f"pdq-{tag}-2"
    try:
        for name in names:
            ip("netns", "add", name)
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        pytest.skip(f"no network namespaces here: {error}")
    try:
        ends = f"p{tag}1", f"p{tag}2"
        ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for number, (name, end) in enumerate(zip(names, ends, strict=True), start=1):
            ip("link", "set", end, "netns", name)
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", end)
            for device in ("lo", end):
                ip("-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in names:
            ip("netns", "delete", name)


def answer(cluster: Cluster) -> list[int]:
    frames = list(cluster.stream(PROMPT, max_new_tokens=NUM_TOKENS, ignore_eos=True))
    assert [frame["finished"] for frame in frames] == [False] * (NUM_TOKENS - 1) + [True]
    return [frame["token"]["id"] for frame in frames]


@pytest.mark.parametrize(("network", "kind"), [("nixl", "nixl"), ("nccl", "gloo")])
def test_kv_travels_between_hosts(
    network: str, kind: str, hosts: tuple[str, str], cluster: Cluster, tmp_path: Path, redis_url: str, tiny_dir: Path
) -> None:
    wanted = answer(cluster)  # all on one host, through shared memory
    env = {"PDQ_KV_TRANSFER__NETWORK": network, "PDQ_KV_TRANSFER__TIMEOUT_S": "10"}
    with running_cluster(tmp_path, redis_url, tiny_dir, env, prefill=0, decode=0, wait=False) as apart:
        apart.start("prefill", *on(hosts[0]), PDQ_KV_TRANSFER__ADDRESS="10.77.0.1")  # no route leads out of here
        decode = apart.start("decode", *on(hosts[1]))
        apart.wait_healthy()
        assert answer(apart) == wanted

        def transfers() -> dict[str, TransferCount]:
            (worker,) = apart.workers(Role.DECODE)
            return worker.transfers

        wait_until(lambda: transfers()[kind].pulls > 0, 5, "the pull is in the worker's status")
        assert (transfers()[kind].pulls, transfers()[kind].failures) == (1, 0)
        assert transfers()["shared_memory"] == TransferCount()
        (owner,) = apart.workers(Role.PREFILL)
        assert owner.export is not None and set(owner.export.addresses) == {kind}
        assert f'"kind": "{kind}"' in apart.log(decode) and "kv_transport_chosen" in apart.log(decode)


def test_ranks_pull_from_ranks_of_another_host(hosts: tuple[str, str], tmp_path: Path, redis_url: str) -> None:
    """Two ranks of prefill, each with half of the heads that the decode worker needs."""
    path = tiny_model("llama_even").path
    env = {"PDQ_KV_TRANSFER__NETWORK": "nixl", "PDQ_KV_TRANSFER__TIMEOUT_S": "10"}
    with running_cluster(tmp_path, redis_url, path, env, prefill=0, decode=0, wait=False) as apart:
        apart.start("prefill", *on(hosts[0]), PDQ_PREFILL__TENSOR_PARALLEL="2")
        apart.start("decode", *on(hosts[1]))
        apart.wait_healthy()
        assert [answer(apart)] == greedy(tiny_runner(path), [PROMPT], NUM_TOKENS)
        (owner,) = apart.workers(Role.PREFILL)
        assert owner.export is not None and [set(rank.addresses) for rank in owner.export.ranks] == [{"nixl"}]

        def pulls() -> TransferCount:
            (worker,) = apart.workers(Role.DECODE)
            return worker.transfers["nixl"]

        # One of each rank, and a status may be said between the two.
        wait_until(lambda: pulls().pulls >= 2, 5, "the pulls are in the worker's status")
        assert (pulls().pulls, pulls().failures) == (2, 0)


def test_workers_that_cannot_reach_each_other_answer_all_the_same(
    hosts: tuple[str, str], cluster: Cluster, tmp_path: Path, redis_url: str, tiny_dir: Path
) -> None:
    """Every failed pull sends the sequence back to prefill, which gives it its next token: slow, and never wrong."""
    with running_cluster(tmp_path, redis_url, tiny_dir, {}, prefill=0, decode=0, wait=False) as apart:
        apart.start("prefill", *on(hosts[0]))
        decode = apart.start("decode", *on(hosts[1]))
        apart.wait_healthy()
        assert answer(apart) == answer(cluster)
        assert apart.log(decode).count("cannot be reached") == NUM_TOKENS - 1
