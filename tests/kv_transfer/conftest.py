"""A directory of its own on /dev/shm for each test, and owners and pullers in processes of their own."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from kv_transfer.shared_memory import ShmDriver
from messages.kv_transfer import KVHandle, PoolExport

ROOT = Path(__file__).parents[2]


@pytest.fixture
def driver(shm_directory: Path) -> ShmDriver:
    return ShmDriver(shm_directory)


class ScriptProcess:
    """A process of one of this folder's scripts: one JSON command per line in, one answer out."""

    def __init__(self, script: str, setup: list[Any], prefix: Sequence[str] = ()) -> None:
        self.process = subprocess.Popen(
            [*prefix, sys.executable, str(Path(__file__).with_name(script)), json.dumps(setup)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )

    def stop(self) -> None:
        """Every thread of it; on a busy machine some run on for a while after the signal was sent."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitpid(self.process.pid, os.WUNTRACED)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self._end()

    def end(self) -> None:
        assert self.process.stdin is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.stdin.close()
        self._end()

    def tell(self, *command: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the process died"
        return json.loads(line)

    def ask(self, *command: Any) -> Any:
        self.tell(*command)
        return self.answer()

    def _end(self) -> None:
        self.process.wait(timeout=30)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


class OwnerProcess(ScriptProcess):
    """The process of owner_process.py."""

    def __init__(
        self,
        directory: Path | None,
        worker_id: str,
        shape: tuple[int, int],
        layout_hash: str,
        max_offers: int,
        prefix: Sequence[str] = (),
    ) -> None:
        num_blocks, block_bytes = shape
        seed = 11
        generator = torch.Generator().manual_seed(seed)
        self.contents = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        setup = [str(directory or ""), worker_id, num_blocks, block_bytes, layout_hash, max_offers, seed]
        super().__init__("owner_process.py", setup, prefix)
        self.pool: str = self.answer()["pool"]

    def offer(self, transfer_id: str, block_ids: list[int], num_tokens: int) -> KVHandle:
        return msgspec.convert(self.ask("offer", transfer_id, block_ids, num_tokens), KVHandle)

    def withdraw(self, transfer_id: str) -> bool:
        return bool(self.ask("withdraw", transfer_id))

    def export(self, host_id: str, kind: str = "nixl", timeout_s: float = 5.0) -> PoolExport:
        """What it says of its pool, after it has made that reachable from other hosts."""
        return msgspec.convert(self.ask("export", host_id, kind, timeout_s), PoolExport)

    def num_pairs(self) -> int:
        """Pullers that are paired with it; exported as gloo."""
        return int(self.ask("pairs"))

    def overwrite(self, value: int) -> None:
        self.ask("overwrite", value)


@pytest.fixture
def start_owner(shm_directory: Path) -> Iterator[Callable[..., OwnerProcess]]:
    owners: list[OwnerProcess] = []

    def start(
        worker_id: str = "prefill-1",
        shape: tuple[int, int] = (64, 5003),
        layout_hash: str = "layout",
        max_offers: int = 8,
        directory: Path | None = shm_directory,
        prefix: Sequence[str] = (),
    ) -> OwnerProcess:
        owners.append(OwnerProcess(directory, worker_id, shape, layout_hash, max_offers, prefix))
        return owners[-1]

    yield start
    for owner in owners:
        owner.end()
