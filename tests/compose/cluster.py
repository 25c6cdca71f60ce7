"""A cluster in containers: compose.yaml with compose.cpu.yaml under a project name and a port of its own."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[2]
FILES = ("-f", "compose.yaml", "-f", "compose.cpu.yaml")

# Runs in the api container: one JSON line with the workers that are ready.
_LIST_WORKERS = """
import asyncio, msgspec
from broker.client import open_broker
from settings.loading import load_settings
async def main():
    settings = load_settings()
    async with open_broker(settings.redis, settings.queue, settings.stream) as broker:
        live = [msgspec.structs.asdict(status) for status in await broker.registry.live()]
        print(msgspec.json.encode(live).decode())
asyncio.run(main())
"""


def wait_until(condition: Callable[[], bool], deadline_s: float, what: str) -> None:
    """Poll until `condition()`; fails with `what` after `deadline_s`."""
    give_up = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < give_up, f"not within {deadline_s:g} s: {what}"
        time.sleep(0.2)


class ComposeCluster:
    """One Compose project. Every method is a `docker compose` command or an HTTP request."""

    def __init__(self, project: str, port: int, engine: Mapping[str, str]) -> None:
        self.project = project
        self.url = f"http://127.0.0.1:{port}"
        self.max_running = 3  # of one decode worker
        self.files: tuple[str, ...] = FILES
        self.env = {
            **os.environ,
            **engine,
            "IMAGE": "pdq-test",
            "PDQ_API__PORT": str(port),
            # fp32, so that what another worker recomputes is equal and not merely close.
            "PDQ_MODEL__DTYPE": "float32",
            "PDQ_KV__POOL_BYTES": str(256 << 20),
            "PDQ_PREFILL__NUM_THREADS": "1",
            "PDQ_DECODE__NUM_THREADS": "1",
            "PDQ_DECODE__MAX_RUNNING": str(self.max_running),
        }

    def docker(self, *arguments: str, timeout_s: float = 60) -> str:
        """stdout of `docker ARGUMENTS`; fails with its output when it does."""
        done = subprocess.run(
            ["docker", *arguments], cwd=ROOT, env=self.env, capture_output=True, text=True, timeout=timeout_s
        )
        assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def compose(self, *arguments: str, timeout_s: float = 60) -> str:
        """stdout of `docker compose ARGUMENTS` on this project."""
        return self.docker("compose", "-p", self.project, *self.files, *arguments, timeout_s=timeout_s)

    @contextmanager
    def extended(self, file: str, **variables: str) -> Iterator[None]:
        """Inside, the project has one more compose file."""
        env, files = self.env, self.files
        self.env, self.files = {**env, **variables}, (*files, "-f", file)
        try:
            yield
        finally:
            self.env, self.files = env, files

    def up(self, **replicas: int) -> None:
        """So many workers, `prefill` and `decode` and what else there is, all healthy."""
        scale = [f"--scale={role}={number}" for role, number in replicas.items()]
        try:
            self.compose("up", "--detach", "--no-build", "--wait", "--wait-timeout", "240", *scale, timeout_s=300)
        except AssertionError as failure:
            raise AssertionError(f"{failure}\n{self.logs()}") from None

    def down(self) -> None:
        """Remove everything, and see that it is gone."""
        self.compose("down", "--volumes", timeout_s=120)
        mine = ("--quiet", "--filter", f"label=com.docker.compose.project={self.project}")
        for kind in (("container", "ls", "--all"), ("volume", "ls"), ("network", "ls")):
            assert self.docker(*kind, *mine) == "", f"{kind[0]}s are left"

    def logs(self) -> str:
        """What the containers said last."""
        state = self.compose("ps", "--all", timeout_s=30)
        return state + self.compose("logs", "--no-color", "--tail", "40", timeout_s=30)

    def containers(self, service: str) -> list[str]:
        """Ids of the service's running containers."""
        return self.compose("ps", "--quiet", service).split()

    def workers(self) -> list[dict[str, Any]]:
        """Every live worker's status; `host` is the start of the container's id."""
        workers: list[dict[str, Any]] = json.loads(self.compose("exec", "-T", "api", "python", "-c", _LIST_WORKERS))
        return workers

    def ready_workers(self) -> list[dict[str, Any]]:
        """The workers that the cluster itself counts as ready."""
        return [worker for worker in self.workers() if worker["state"] == "ready"]

    def log_of(self, container: str) -> str:
        """What the container said, on either stream."""
        command = ["docker", "logs", container]
        done = subprocess.run(command, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
        return done.stdout.decode()

    def is_unhealthy(self, container: str) -> bool:
        """Whether the container's own health check, run now, fails."""
        command = ["docker", "exec", container, "pdq", "health", "--role", "self"]
        return subprocess.run(command, env=self.env, capture_output=True, timeout=60).returncode == 1

    def num_ready(self, role: str) -> int:
        return sum(1 for worker in self.ready_workers() if worker["role"] == role)

    def generate(self, inputs: str, **parameters: Any) -> str:
        """POST /generate; the text."""
        body = {"inputs": inputs, "parameters": parameters}
        answer = httpx.post(f"{self.url}/generate", json=body, timeout=120)
        assert answer.status_code == 200, answer.text
        text: str = answer.json()["generated_text"][0]
        return text

    def stream(self, inputs: str, **parameters: Any) -> Iterator[dict[str, Any]]:
        """POST /generate_stream; its frames, as they come."""
        body = {"inputs": inputs, "parameters": parameters}
        with httpx.stream("POST", f"{self.url}/generate_stream", json=body, timeout=120) as answer:
            assert answer.status_code == 200, answer.read()
            for line in answer.iter_lines():
                if line:
                    yield json.loads(line.removeprefix("data:"))
