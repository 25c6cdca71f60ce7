"""A server's life: started on a free port, asked until it answers, stopped with everything it has started.

Knows processes and the load generator's one request; knows no figure but how long the start took.
"""

import asyncio
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.http_stream import Target, resolve
from bench.load import Load, build_body, send_request
from bench.options import StyleName, wire_style
from bench.peers.server import CACHES, PORT, Server
from bench.peers.workshop import PeerFailed
from bench.prompts import PromptSource
from bench.wire_style import WireStyle
from bench.workload import Concurrency, Group

ASK_EVERY_S = 0.1
READY_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 20.0
FIRST_REQUEST = Group("ready", Concurrency(1), prompt_tokens=8, output_tokens=1)
LOG_LINES = 12


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers."""

    pid: int  # of the process at the root of its tree
    target: Target
    style: WireStyle
    ready_s: float  # from the start of its process to the end of the first request that succeeded

    def load(self, prompts: PromptSource) -> Load:
        """What is sent there."""
        return Load(self.target, self.style, prompts, idle_timeout_s=120.0)


@asynccontextmanager
async def running(server: Server, caches: Path | None = None) -> AsyncIterator[Running]:
    """While entered it runs. `caches`: a directory for what it compiles, in place of its own. Raises PeerFailed."""
    with tempfile.TemporaryDirectory(prefix="pdq-compare-") as made:
        folder = Path(made)
        port = _free_port()
        environment = dict(os.environ) | dict(server.environment)
        if caches is not None:
            environment |= {
                name: value.replace(CACHES, str(caches)) for name, value in server.cache_environment.items()
            }
        command = [part.replace(PORT, str(port)) for part in server.command]
        began = time.monotonic()
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(  # noqa: ASYNC220 - nothing else runs meanwhile
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            style = wire_style(StyleName(server.style), server.model_name)
            target = await resolve(f"http://127.0.0.1:{port}", style.PATH)
            await _until_ready(server, process, Load(target, style, PromptSource(port), 30.0), folder / "log")
            yield Running(process.pid, target, style, time.monotonic() - began)
        finally:
            await asyncio.to_thread(_stop, process)


async def _until_ready(server: Server, process: subprocess.Popen[bytes], load: Load, log: Path) -> None:
    give_up = time.monotonic() + READY_TIMEOUT_S
    index = 0
    while True:
        record = await send_request(load, FIRST_REQUEST, index, build_body(load, FIRST_REQUEST, index))
        if record.succeeded:
            return
        index += 1
        has_ended = process.poll() is not None
        if has_ended or time.monotonic() > give_up:
            why = f"ended with code {process.returncode}" if has_ended else f"does not answer after {READY_TIMEOUT_S} s"
            raise PeerFailed(f"{server.name} {why} (last answer: {record.failure}); its log ends with\n{_tail(log)}")
        await asyncio.sleep(ASK_EVERY_S)


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])


def _stop(process: subprocess.Popen[bytes]) -> None:
    """It and whatever it has started, which is in its process group."""
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        pass  # killed next
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # nobody is left
    process.wait()


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])
