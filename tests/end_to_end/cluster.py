"""A real cluster for tests: redis-server, `pdq api`, `pdq prefill` and `pdq decode` as processes of their own."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from broker.client import open_broker
from messages.worker_status import Role, WorkerState, WorkerStatus
from settings.broker import QueueSettings, RedisSettings, StreamSettings

ROOT = Path(__file__).parents[2]
START_DEADLINE_S = 90.0


def wait_until(condition: Callable[[], bool], deadline_s: float, what: str) -> None:
    """Poll until `condition()`; fails with `what` after `deadline_s`."""
    give_up = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > give_up:
            raise AssertionError(f"not within {deadline_s:g} s: {what}")
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Cluster:
    """Processes under one key prefix. Every process's log is a file in `folder`."""

    def __init__(self, folder: Path, redis_url: str, model: Path | str, env: dict[str, str]) -> None:
        self.folder, self.redis_url = folder, redis_url
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.prefix = f"pdq-test-{folder.name}-{self.port}"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.env = (
            os.environ
            | {
                "PDQ_REDIS__URL": redis_url,
                "PDQ_REDIS__KEY_PREFIX": self.prefix,
                "PDQ_MODEL__PATH": str(model),
                "PDQ_API__PORT": str(self.port),
                "PDQ_KV__POOL_BYTES": str(256 << 20),
                "PDQ_LOG__FORMAT": "json",
                "PDQ_BATCH__STORE": str(folder / "files"),
                # Several workers share few cores here; two threads each would wait for each other at every barrier.
                "PDQ_PREFILL__NUM_THREADS": "1",
                "PDQ_DECODE__NUM_THREADS": "1",
                # Most tests are about what passes between two workers; test_local_prefill.py and test_serve.py are not.
                "PDQ_DECODE__LOCAL_PREFILL": "never",
            }
            | env
        )

    def start(self, role: str, *wrapper: str, **env: str) -> str:
        """Start one process, by way of the command `wrapper` if one is given; its name, e.g. `decode-1`."""
        name = f"{role}-{sum(1 for other in self.processes if other.startswith(role + '-'))}"
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                [*wrapper, sys.executable, "-m", "cli", role], cwd=ROOT, env=self.env | env, stdout=log, stderr=log
            )
        return name

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a signal; after SIGKILL the process is reaped."""
        process = self.processes[name]
        process.send_signal(number)
        if number == signal.SIGKILL:
            process.wait()

    def stop(self, name: str, deadline_s: float = 10.0) -> int:
        """SIGTERM and wait; the exit code."""
        self.processes[name].terminate()
        return self.processes[name].wait(deadline_s)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def health(self) -> int:
        """Status of GET /health; 0 when nobody answers."""
        try:
            return httpx.get(self.url + "/health", timeout=5).status_code
        except httpx.TransportError:
            return 0

    def wait_healthy(self) -> None:
        give_up = time.monotonic() + START_DEADLINE_S
        while self.health() != 200:
            for name, process in self.processes.items():
                if process.poll() not in (None, -signal.SIGKILL):
                    raise AssertionError(f"{name} exited with {process.returncode}:\n{self.log(name)[-3000:]}")
            if time.monotonic() > give_up:
                logs = "\n".join(f"--- {name}\n{self.log(name)[-1500:]}" for name in self.processes)
                raise AssertionError(f"not healthy within {START_DEADLINE_S:g} s\n{logs}")
            time.sleep(0.05)

    def workers(self, role: Role | None = None) -> list[WorkerStatus]:
        """The live workers, of one role or of both."""

        async def read() -> list[WorkerStatus]:
            redis = RedisSettings(url=self.redis_url, key_prefix=self.prefix)
            async with open_broker(redis, QueueSettings(), StreamSettings()) as broker:
                return [status for status in await broker.registry.live() if role in (None, status.role)]

        return asyncio.run(read())

    def num_ready(self) -> int:
        return sum(status.state == WorkerState.READY for status in self.workers())

    def all_blocks_are_free(self) -> bool:
        return all(status.free_blocks == status.num_blocks for status in self.workers())

    def busy_process(self, role: Role) -> str:
        """Waits for a process of this role that has running sequences; its name."""
        names = {process.pid: name for name, process in self.processes.items()}
        busy: list[str] = []

        def look() -> bool:
            busy[:] = [names[status.pid] for status in self.workers(role) if status.num_running]
            return bool(busy)

        wait_until(look, 10, f"a busy {role} worker")
        return busy[0]

    def close(self) -> None:
        """End every process; SIGKILL whoever is still there after 10 s."""
        for process in self.processes.values():
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    # -- requests ------------------------------------------------------------------------------------------------

    def generate(self, inputs: str | list[int], **parameters: Any) -> dict[str, Any]:
        """POST /generate; the body of a 200."""
        answer = httpx.post(self.url + "/generate", json={"inputs": inputs, "parameters": parameters}, timeout=60)
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.json()
        return body

    def stream(self, inputs: str | list[int], **parameters: Any) -> Iterator[dict[str, Any]]:
        """POST /generate_stream; its frames, as they come."""
        body = {"inputs": inputs, "parameters": parameters}
        with httpx.stream("POST", self.url + "/generate_stream", json=body, timeout=60) as answer:
            assert answer.status_code == 200, answer.read()
            for line in answer.iter_lines():
                if line:
                    assert line.startswith("data:{"), line
                    yield json.loads(line.removeprefix("data:"))


@contextmanager
def running_cluster(
    folder: Path,
    redis_url: str,
    model: Path | str,
    env: dict[str, str],
    prefill: int = 1,
    decode: int = 1,
    wait: bool = True,
) -> Iterator[Cluster]:
    """A cluster that is healthy on entry (if `wait`) and gone on exit."""
    cluster = Cluster(folder, redis_url, model, env)
    try:
        for role, count in (("prefill", prefill), ("decode", decode), ("api", 1)):
            for _ in range(count):
                cluster.start(role)
        if wait:
            cluster.wait_healthy()
        yield cluster
    finally:
        cluster.close()
