"""Redis is killed or stopped in the middle of streams; it comes back, and nobody's text or block is lost."""

import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from cli.embedded_redis import redis_command
from errors import STALLED_EXIT_CODE
from tests.conftest import RedisServer
from tests.end_to_end.cluster import Cluster, running_cluster, wait_until

NUM_STREAMS = 4
NUM_TOKENS = 300
COMMAND_TIMEOUT_S = 2.0


@pytest.fixture(scope="module")
def lasting_redis(redis_binary: str) -> Iterator[RedisServer]:
    """A redis-server that keeps its data as the one of `pdq serve` does."""
    with tempfile.TemporaryDirectory(prefix="pdq-redis-") as folder:
        server = RedisServer(Path(folder), *redis_command(Path(redis_binary), Path(folder)))
        server.start()
        yield server
        server.stop()


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory, lasting_redis: RedisServer, tiny_dir: Path) -> Iterator[Cluster]:
    """1 prefill + 1 decode worker on it."""
    folder = tmp_path_factory.mktemp("lasting")
    env = {"PDQ_REDIS__COMMAND_TIMEOUT_S": str(COMMAND_TIMEOUT_S)}
    with running_cluster(folder, lasting_redis.url, tiny_dir, env) as running:
        yield running


def stream_ids(cluster: Cluster, number: int, seen: threading.Semaphore | None = None) -> list[int]:
    ids = []
    for frame in cluster.stream([7 + number] * 20, max_new_tokens=NUM_TOKENS, ignore_eos=True):
        ids.append(frame["token"]["id"])
        assert frame["token"]["count_output_tokens"] == len(ids)
        if len(ids) == 30 and seen is not None:
            seen.release()
    return ids


@pytest.mark.parametrize(
    ("is_killed", "away_s"), [(True, 0.5), (True, 6.0), (False, 3.0)], ids=["killed-0.5", "killed-6", "stopped-3"]
)
def test_streams_outlast_a_redis_that_goes_away(
    lasting: Cluster, lasting_redis: RedisServer, is_killed: bool, away_s: float
) -> None:
    expected = [stream_ids(lasting, each) for each in range(NUM_STREAMS)]
    pids = {status.worker_id: status.pid for status in lasting.workers()}
    seen = threading.Semaphore(0)
    with ThreadPoolExecutor(NUM_STREAMS) as clients:
        streams = [clients.submit(stream_ids, lasting, each, seen) for each in range(NUM_STREAMS)]
        for _ in streams:
            assert seen.acquire(timeout=20)
        began = time.monotonic()
        if is_killed:
            lasting_redis.stop()
        else:
            lasting_redis.freeze()
        body = {"inputs": "Hello", "parameters": {"max_new_tokens": 1}}
        if away_s > 2 * COMMAND_TIMEOUT_S:
            assert httpx.post(lasting.url + "/generate", json=body, timeout=10).status_code == 503
            assert time.monotonic() - began < COMMAND_TIMEOUT_S + 1
        time.sleep(began + away_s - time.monotonic())
        assert not any(stream.done() for stream in streams), "the outage was in the middle"
        if is_killed:
            lasting_redis.start()
        else:
            lasting_redis.thaw()
        assert [stream.result(30) for stream in streams] == expected
    wait_until(lambda: lasting.num_ready() == 2 and lasting.all_blocks_are_free(), 5, "every block is free again")
    assert {status.worker_id: status.pid for status in lasting.workers()} == pids  # nobody had to start anew
    assert "job_reclaimed" not in "".join(lasting.log(name) for name in lasting.processes)  # nor was anybody robbed


def test_a_worker_that_cannot_hand_its_work_on_ends_all_the_same(lasting: Cluster, lasting_redis: RedisServer) -> None:
    late = lasting.start("decode", PDQ_QUEUE__EXIT_S="1.0")
    hurried = lasting.start("decode")
    wait_until(lambda: lasting.num_ready() == 4, 60, "they are ready")
    lasting_redis.freeze()
    try:
        for name in (late, hurried):
            lasting.kill(name, signal.SIGTERM)
        wait_until(lambda: "worker_stopping" in lasting.log(hurried), 5, "it has heard the first one")
        lasting.kill(hurried, signal.SIGTERM)
        for name in (late, hurried):
            assert lasting.processes.pop(name).wait(5) == STALLED_EXIT_CODE
            assert "drain_cut_short" in lasting.log(name)
    finally:
        lasting_redis.thaw()
