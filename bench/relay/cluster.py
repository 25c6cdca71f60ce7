"""The processes of a measurement: redis-server as `pdq serve` starts it, one API process, the simulated worker.

Knows processes and pipes; knows no figures.
"""

import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bench.process_tree import cpu_of_tree_s
from cli.child import PARENT_DEATH
from cli.embedded_redis import find_redis_server, redis_command, redis_url, socket_path
from errors import PdqError

START_TIMEOUT_S = 30.0
END_TIMEOUT_S = 10.0
_POLL_S = 0.02
_ROOT = Path(__file__).parents[2]
_LOG_TAIL_CHARS = 2000


class ClusterFailed(PdqError):
    """A process did not start, or ended."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Running. Orders for the worker are lines."""

    port: int
    folder: Path
    processes: Mapping[str, "subprocess.Popen[bytes]"]  # redis, worker, api

    def order(self, line: bytes) -> None:
        """Say a line to the worker."""
        self._pipe("stdin").write(line + b"\n")
        self._pipe("stdin").flush()

    def answer(self) -> bytes:
        """The worker's answer to the last order; waits for it. Raises ClusterFailed."""
        is_there, _, _ = select.select([self._pipe("stdout")], [], [], START_TIMEOUT_S)
        if not is_there:
            raise ClusterFailed(f"the simulated worker says nothing: {self.log_tail('worker')}")
        line = self._pipe("stdout").readline()
        if not line:
            raise ClusterFailed(f"the simulated worker ended: {self.log_tail('worker')}")
        return line

    def cpu_s(self) -> dict[str, float]:
        """CPU time of Redis and the API so far."""
        return {name: cpu_of_tree_s(self.processes[name].pid) or 0.0 for name in ("api", "redis")}

    def log_tail(self, name: str) -> str:
        """The end of what the process logged."""
        return (self.folder / f"{name}.log").read_text(errors="replace")[-_LOG_TAIL_CHARS:]

    def _pipe(self, name: str) -> IO[bytes]:
        pipe: IO[bytes] | None = getattr(self.processes["worker"], name)
        assert pipe is not None
        return pipe


@contextmanager
def running_cluster(model_dir: Path) -> Iterator[Cluster]:
    """Start all three, and end them, also when this process is asked to end. Raises ClusterFailed, BrokerError."""
    with _ended_by_signals(), tempfile.TemporaryDirectory(prefix="pdq-relay-") as name, ExitStack() as stack:
        folder, port = Path(name), _free_port()
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PDQ_")} | {
            "PDQ_REDIS__URL": redis_url(folder),
            "PDQ_MODEL__PATH": str(model_dir),
            "PDQ_API__PORT": str(port),
            "PDQ_QUEUE__MAX_WAITING": "100000",
            "PDQ_LOG__LEVEL": "warning",
        }
        processes: dict[str, subprocess.Popen[bytes]] = {}
        cluster = Cluster(port, folder, processes)

        def start(name: str, *command: str) -> None:
            log = stack.enter_context((folder / f"{name}.log").open("wb"))
            process = subprocess.Popen(
                # Whatever ends us, SIGKILL included, ends it.
                (sys.executable, "-I", "-S", str(PARENT_DEATH), str(os.getpid()), *command),
                cwd=_ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
            stack.callback(_end, process)
            processes[name] = process

        start("redis", *redis_command(find_redis_server(), folder))
        _wait(cluster, "redis", lambda: _answers(folder))
        start("worker", sys.executable, "-m", "bench.relay.worker", str(model_dir))
        start("api", sys.executable, "-m", "api")
        _wait(cluster, "api", lambda: _is_ready(port))
        yield cluster


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block as an exception does, as SIGINT's KeyboardInterrupt does anyway."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(cluster: Cluster, name: str, condition: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + START_TIMEOUT_S
    while not condition():
        if cluster.processes[name].poll() is not None or time.monotonic() > give_up_at:
            raise ClusterFailed(f"{name} does not start: {cluster.log_tail(name)}")
        time.sleep(_POLL_S)


def _answers(folder: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(socket_path(folder)))
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readiness", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _end(process: "subprocess.Popen[bytes]") -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    process.terminate()
    try:
        process.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
