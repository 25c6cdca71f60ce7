"""Doors that hold a worker at a phase of a request until a fault has been done to it.

A door is a file: closed while it exists. A process that comes to a closed door leaves a file with its process id. No
worker of production knows them; bench/chaos/role.py puts them into the processes of the bench.
"""

import asyncio
import os
from enum import StrEnum
from pathlib import Path

POLL_S = 0.005


class Phase(StrEnum):
    """Where a request is when the fault comes, in the order in which it gets there."""

    QUEUED = "queued"  # in the prefill queue
    PREFILLING = "prefilling"  # claimed, before its forward pass
    FIRST_TOKEN = "first token"  # computed, its KV on offer; nobody has been told
    OFFERED = "offered"  # in the decode queue
    PULLING = "pulling"  # delivered to a decode worker, before the copy
    DECODING = "decoding"  # some tokens along


class Gates:
    """The doors of one cluster, files in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def close(self, phase: Phase) -> None:
        """From now on workers wait there."""
        self._forget(phase)
        self._door(phase).touch()

    def open(self, phase: Phase) -> None:
        """Let everybody through."""
        self._door(phase).unlink(missing_ok=True)

    def held(self, phase: Phase) -> list[int]:
        """Process ids that came to the closed door."""
        return [int(path.name.rpartition("@")[2]) for path in self._folder.glob(f"{phase.name}@*")]

    async def wait(self, phase: Phase) -> None:
        """What a worker does there."""
        while self._is_closed(phase):  # noqa: ASYNC110 - who opens the door is another process
            await asyncio.sleep(POLL_S)

    def _is_closed(self, phase: Phase) -> bool:
        if not self._door(phase).exists():
            return False
        (self._folder / f"{phase.name}@{os.getpid()}").touch()
        return True

    def _door(self, phase: Phase) -> Path:
        return self._folder / phase.name

    def _forget(self, phase: Phase) -> None:
        for path in self._folder.glob(f"{phase.name}@*"):
            path.unlink()
