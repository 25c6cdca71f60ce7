"""A cluster to be mistreated: redis-server with its log on disk, workers and APIs, all processes that can be killed.

Knows processes, signals, and how to look whether everything is as before; knows no requests.
"""

import asyncio
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from bench.chaos.event_source import Address
from bench.chaos.gates import Gates
from bench.chaos.role import PRELOAD, Stage, play
from bench.chaos.toy_model import write_toy_model
from broker.client import Broker, open_broker
from broker.job_queue import JobQueue
from cli.embedded_redis import find_redis_server, redis_command, redis_url, wait_until_answering
from errors import PdqError
from messages.job import DecodeJob, PrefillJob
from messages.worker_status import Role, WorkerState
from settings.loading import load_settings

LEASE_S = 1.0
START_TIMEOUT_S = 60.0
POLL_S = 0.02
WORKERS = (Role.PREFILL.value, Role.DECODE.value)
API = "api"
ROLES = (*WORKERS, API)


class ChaosFailed(PdqError):
    """The bench itself cannot go on, or the cluster does not get well."""


@dataclass(slots=True, eq=False)
class Member:
    """One place in the cluster and the process that fills it."""

    role: str
    number: int
    port: int = 0
    process: multiprocessing.process.BaseProcess | None = None
    num_starts: int = 0

    @property
    def name(self) -> str:
        """E.g. `decode 1`."""
        return f"{self.role} {self.number}"

    @property
    def pid(self) -> int:
        """0 when nobody is there."""
        return self.process.pid or 0 if self.process is not None and self.process.is_alive() else 0


@dataclass(frozen=True, slots=True)
class Census:
    """What is left of requests in the cluster; all zero when it is idle."""

    busy_blocks: int
    missing_workers: int
    queued_jobs: int
    active_choices: int
    extra_segments: int

    @property
    def is_clean(self) -> bool:
        """Nothing is left."""
        return self == Census(0, 0, 0, 0, 0)


class ChaosCluster:
    """`num` members of each role. Use as an async context manager."""

    def __init__(self, num: int, step_s: float, settings: dict[str, str] | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pdq-chaos-"))
        self.shm = Path(tempfile.mkdtemp(prefix="chaos-", dir="/dev/shm"))
        self.gates = Gates(self.folder / "gates")
        self.step_s = step_s
        self.members = [
            Member(role, number, _free_port() if role == API else 0) for role in ROLES for number in range(num)
        ]
        self._environment = {
            "PDQ_REDIS__URL": redis_url(self.folder),
            "PDQ_REDIS__KEY_PREFIX": "chaos",
            "PDQ_MODEL__PATH": str(self.folder / "model"),
            "PDQ_MODEL__DEVICE": "cpu",
            "PDQ_KV__NUM_BLOCKS": "512",
            "PDQ_DECODE__LOCAL_PREFILL": "never",  # who is to be hit while it prefills has to be known beforehand
            "PDQ_PREFILL__NUM_THREADS": "1",
            "PDQ_DECODE__NUM_THREADS": "1",
            "PDQ_QUEUE__LEASE_S": str(LEASE_S),
            "PDQ_QUEUE__HEARTBEAT_S": "0.2",
            "PDQ_LOG__FORMAT": "json",
            **(settings or {}),
        }
        self._redis: subprocess.Popen[bytes] | None = None
        self._stack = AsyncExitStack()
        self._broker: Broker | None = None

    async def __aenter__(self) -> Self:
        write_toy_model(self.folder / "model")
        (self.folder / "gates").mkdir()
        # Read by OpenMP when it is loaded, which in a forked process is over.
        os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOAD)
        await self.start_redis()
        for member in self.members:
            self.start(member)
        await self.wait_well()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()
        for member in self.members:
            if member.pid:
                os.kill(member.pid, signal.SIGCONT)
                os.kill(member.pid, signal.SIGTERM)
        give_up = time.monotonic() + 10
        for member in self.members:
            if member.process is not None:
                await asyncio.to_thread(member.process.join, max(0.0, give_up - time.monotonic()))
                self.kill(member)
        if self._redis is not None:
            self._redis.kill()
            self._redis.wait()
        shutil.rmtree(self.shm)
        if error is None:
            shutil.rmtree(self.folder)

    # -- processes -----------------------------------------------------------------------------------------------

    def start(self, member: Member) -> None:
        """Fill the place."""
        environment = self._environment | {"PDQ_API__PORT": str(member.port)}
        log = self.folder / f"{member.role}-{member.number}.log"
        member.process = self.fork(
            play, (member.role, environment, Stage(log, self.folder / "gates", self.shm, self.step_s))
        )
        member.num_starts += 1

    def fork(self, target: Callable[..., None], arguments: tuple[Any, ...]) -> multiprocessing.process.BaseProcess:
        """A process that runs `target`, and ends with the bench."""
        process = self._context.Process(target=target, args=arguments, daemon=True)
        process.start()
        return process

    def kill(self, member: Member) -> None:
        """SIGKILL; the place stays empty until `start`."""
        if member.process is not None:
            member.process.kill()
            member.process.join()

    async def start_redis(self) -> None:
        """Start redis-server, as `pdq serve` does, on the data that is there."""
        command = redis_command(find_redis_server(), self.folder)
        self._redis = subprocess.Popen(  # noqa: ASYNC220 - nothing else runs meanwhile
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        await wait_until_answering(self.folder)

    def kill_redis(self) -> None:
        """SIGKILL."""
        assert self._redis is not None
        self._redis.kill()
        self._redis.wait()

    @property
    def redis_pid(self) -> int:
        """Of redis-server."""
        assert self._redis is not None
        return self._redis.pid

    def of(self, role: str) -> list[Member]:
        """The members of a role."""
        return [member for member in self.members if member.role == role]

    def by_pid(self, pid: int) -> Member | None:
        """Who has this process id now."""
        return next((member for member in self.members if member.pid == pid), None)

    def addresses(self) -> list[Address]:
        """Where the APIs listen, also those that are dead just now."""
        return [Address("127.0.0.1", member.port) for member in self.of(API)]

    # -- how it is -----------------------------------------------------------------------------------------------

    async def broker(self) -> Broker:
        """A look into its Redis."""
        if self._broker is None:
            variables = {
                name.removeprefix("PDQ_REDIS__").lower(): value
                for name, value in self._environment.items()
                if name.startswith("PDQ_REDIS__")
            }
            settings = load_settings({"redis": variables})
            self._broker = await self._stack.enter_async_context(
                open_broker(settings.redis, settings.queue, settings.stream)
            )
        return self._broker

    async def census(self) -> Census:
        """What is left of requests."""
        broker = await self.broker()
        workers = await broker.registry.live()
        pids = {member.pid for member in self.members if member.role in WORKERS}
        ready = [worker for worker in workers if worker.state is WorkerState.READY and worker.pid in pids]
        queues: list[JobQueue[PrefillJob] | JobQueue[DecodeJob]] = [
            broker.prefill_queue,
            broker.decode_queue,
            broker.local_queue,
        ]
        num_pools = sum(len(self.of(role)) for role in WORKERS)
        return Census(
            busy_blocks=sum(worker.num_blocks - worker.free_blocks for worker in ready),
            missing_workers=max(0, len(pids) - len(ready)) + sum(not member.pid for member in self.members),
            queued_jobs=sum([await queue.depth() for queue in queues]),
            active_choices=len(await broker.request_reader.loads()),
            extra_segments=len(list(self.shm.iterdir())) - num_pools,
        )

    async def wait_clean(self, within_s: float) -> Census:
        """The census as soon as it is clean, or as it is after `within_s`."""
        give_up = time.monotonic() + within_s
        while True:
            census = await self.census()
            if census.is_clean or time.monotonic() > give_up:
                return census
            await asyncio.sleep(POLL_S)

    async def wait_well(self, within_s: float = START_TIMEOUT_S) -> None:
        """Every place filled, every worker ready, every API healthy. Raises ChaosFailed."""
        async with httpx.AsyncClient(timeout=2) as client:

            async def is_well() -> bool:
                for member in self.of(API):
                    try:
                        answer = await client.get(f"http://127.0.0.1:{member.port}/health")
                    except httpx.TransportError:
                        return False
                    if answer.status_code != 200:
                        return False
                return (await self.census()).missing_workers == 0

            await wait_for(is_well, within_s, f"the cluster is not well; its logs are in {self.folder}")


async def wait_for(condition: Callable[[], Awaitable[bool]], within_s: float, what: str) -> None:
    """Poll until `condition()`. Raises ChaosFailed."""
    give_up = time.monotonic() + within_s
    while not await condition():
        if time.monotonic() > give_up:
            raise ChaosFailed(f"not within {within_s:g} s: {what}")
        await asyncio.sleep(POLL_S)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
