"""A `pdq serve` of one policy, as a process of its own. Knows how it starts and stops; knows nothing of requests."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from types import TracebackType
from typing import Self

from errors import PdqError

START_TIMEOUT_S = 120.0


class NotStarted(PdqError):
    """It did not become healthy."""


class Cluster:
    """One prefill and one decode worker under `policy` (PDQ_DECODE__LOCAL_PREFILL). Use as an async context manager."""

    def __init__(self, policy: str, model: str) -> None:
        self.policy, self.model = policy, model
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = tempfile.TemporaryFile()
        self._process: subprocess.Popen[bytes] | None = None

    def _start(self) -> subprocess.Popen[bytes]:
        # Overload is no subject here: what waits long misses its limits by itself.
        env = os.environ | {
            "PDQ_DECODE__LOCAL_PREFILL": self.policy,
            "PDQ_KV__POOL_BYTES": str(512 << 20),
            "PDQ_QUEUE__TTFT_LIMIT_S": "0",
            "PDQ_QUEUE__PLACE_LIMIT_S": "0",
        }
        command = [sys.executable, "-m", "cli", "serve", "--port", str(self.port), "--model", self.model]
        return subprocess.Popen(command, env=env, stdout=self._log, stderr=self._log)

    async def __aenter__(self) -> Self:
        self._process = self._start()
        give_up = time.monotonic() + START_TIMEOUT_S
        while not await asyncio.to_thread(self._is_healthy):
            if self._process.poll() is not None or time.monotonic() > give_up:
                self._log.seek(0)
                raise NotStarted(f"pdq serve with {self.policy}: {self._log.read().decode(errors='replace')[-2000:]}")
            await asyncio.sleep(0.2)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(self._process.wait, 30)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._log.close()

    def prefilled_tokens(self) -> dict[str, int]:
        """Tokens that each role has prefilled since the start."""
        with urllib.request.urlopen(self.url + "/metrics", timeout=10) as answer:
            lines = str(answer.read(), "utf-8").splitlines()
        rows = [line for line in lines if line.startswith("pdq_prefilled_tokens_total{")]
        found: dict[str, int] = {}
        for row in rows:
            role = "decode" if 'role="decode"' in row else "prefill"
            found[role] = found.get(role, 0) + int(float(row.rpartition(" ")[2]))
        return found

    def _is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(self.url + "/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False
