"""Redis, one API and any number of workers that sleep in place of computing, started and stopped together.

Knows processes; knows no request and no figure.
"""

import asyncio
import multiprocessing
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

from bench.chaos.toy_model import write_toy_model
from bench.scaling.simulated_role import PRELOAD, Pace, play
from broker.client import open_broker
from cli.embedded_redis import find_redis_server, redis_command, redis_url, wait_until_answering
from errors import PdqError
from messages.worker_status import Role, WorkerState
from settings.loading import load_settings

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
POLL_S = 0.1
NUM_BLOCKS = 1024


class ClusterFailed(PdqError):
    """The workers do not come up."""


@asynccontextmanager
async def simulated_cluster(num_workers: dict[Role, int], pace: Pace, max_running: int) -> AsyncIterator[str]:
    """The API's URL, once every worker is ready. `max_running`: of a decode worker. Raises ClusterFailed."""
    folder = Path(tempfile.mkdtemp(prefix="pdq-scaling-"))
    try:
        await asyncio.to_thread(write_toy_model, folder / "model")
        port = _free_port()
        environment = {
            "PDQ_REDIS__URL": redis_url(folder),
            "PDQ_REDIS__KEY_PREFIX": "scaling",
            "PDQ_MODEL__PATH": str(folder / "model"),
            "PDQ_MODEL__DEVICE": "cpu",
            "PDQ_KV__NUM_BLOCKS": str(NUM_BLOCKS),
            "PDQ_KV__PREFIX_CACHE": "false",
            "PDQ_PREFILL__NUM_THREADS": "1",
            "PDQ_DECODE__NUM_THREADS": "1",
            "PDQ_DECODE__MAX_RUNNING": str(max_running),
            "PDQ_API__PORT": str(port),
            "PDQ_LOG__FORMAT": "json",
        }
        roles = ["api", *(role.value for role, number in num_workers.items() for _ in range(number))]
        # Read by OpenMP when it is loaded, which in a forked process is over.
        os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        redis = subprocess.Popen(  # noqa: ASYNC220 - nothing else runs meanwhile
            redis_command(find_redis_server(), folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        processes: list[BaseProcess] = []
        try:
            await wait_until_answering(folder)
            for index, role in enumerate(roles):
                log = folder / f"{role}-{index}.log"
                process = context.Process(target=play, args=(role, environment, log, pace), daemon=True)
                process.start()
                processes.append(process)
            await _until_ready(redis_url(folder), processes, port, folder)
            yield f"http://127.0.0.1:{port}"
        finally:
            for started in processes:
                started.terminate()
            give_up = time.monotonic() + STOP_TIMEOUT_S
            for started in processes:
                await asyncio.to_thread(started.join, max(0.0, give_up - time.monotonic()))
                started.kill()
                started.join()
            redis.kill()
            redis.wait()
    except ClusterFailed:
        raise  # its logs are to be read
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder)


async def _until_ready(url: str, processes: list[BaseProcess], port: int, folder: Path) -> None:
    """`processes`: the API and the workers."""
    settings = load_settings({"redis": {"url": url, "key_prefix": "scaling"}})
    give_up = time.monotonic() + START_TIMEOUT_S
    async with open_broker(settings.redis, settings.queue, settings.stream) as broker:
        while time.monotonic() < give_up and all(process.exitcode is None for process in processes):
            workers = await broker.registry.live()
            num_ready = sum(worker.state is WorkerState.READY for worker in workers)
            if num_ready == len(processes) - 1 and _is_listening(port):
                return
            await asyncio.sleep(POLL_S)
    raise ClusterFailed(f"the cluster did not get ready within {START_TIMEOUT_S:g} s; its logs are in {folder}")


def _is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
