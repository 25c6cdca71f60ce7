"""A client in a process of its own, which can be stopped, slowed down and killed like any other.

It writes every token it hears into a file, so that nothing is lost with it.
"""

import asyncio
import multiprocessing
from pathlib import Path

import msgspec

from bench.chaos.cluster import ChaosCluster
from bench.chaos.event_source import Address
from bench.chaos.story import Story, Telling, Token, listen


class Listener:
    """Asks for `story` at once. `is_back`: whether it says that it comes back after a lost connection."""

    def __init__(self, cluster: ChaosCluster, story: Story, request_id: str, is_back: bool) -> None:
        self._file = cluster.folder / f"{request_id}.heard"
        self._file.touch()
        arguments = (story, request_id, cluster.addresses(), is_back, self._file)
        self._process: multiprocessing.process.BaseProcess = cluster.fork(_hear, arguments)

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._process.pid or 0

    def heard(self) -> Telling:
        """What it has heard so far."""
        telling = Telling()
        for line in self._file.read_bytes().splitlines():
            telling.tokens.append(msgspec.json.decode(line, type=Token))
        return telling

    async def wait_end(self, within_s: float) -> Telling:
        """What it heard, at its end."""
        await asyncio.to_thread(self._process.join, within_s)
        telling = self.heard()
        if self._process.exitcode is None:
            telling.failure = f"not at its end after {within_s:g} s"
        elif self._process.exitcode != 0:
            telling.failure = self._file.with_suffix(".failure").read_text()
        return telling

    def close(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.join()


class _Noting(list[Token]):
    """Tokens that are in the file before anything else happens."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._out = file.open("ab", buffering=0)

    def append(self, token: Token) -> None:
        super().append(token)
        self._out.write(msgspec.json.encode(token) + b"\n")


def _hear(story: Story, request_id: str, addresses: list[Address], is_back: bool, file: Path) -> None:
    telling = Telling(tokens=_Noting(file))
    asyncio.run(listen(story, request_id, addresses, telling, is_back))
    if telling.failure:
        file.with_suffix(".failure").write_text(telling.failure)
        raise SystemExit(1)
