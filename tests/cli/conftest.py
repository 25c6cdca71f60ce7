"""Stand-in children: tiny shells that do one thing, and a log of what the supervisor says."""

import asyncio
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.child import ChildSpec


class Log:
    """What was announced, written and started; `wait_for` returns as soon as it says something."""

    def __init__(self) -> None:
        self.sentences: list[str] = []
        self.lines: list[tuple[str, str]] = []
        self.pids: list[int] = []

    def announce(self, sentence: str) -> None:
        self.sentences.append(sentence)

    def write_line(self, name: str, line: str) -> None:
        self.lines.append((name, line))

    async def wait_for(self, condition: Callable[["Log"], bool], deadline_s: float = 20.0) -> None:
        give_up = time.monotonic() + deadline_s
        while not condition(self):
            assert time.monotonic() < give_up, f"not in time; {self.sentences} {self.lines}"
            await asyncio.sleep(0.01)


@pytest.fixture
def log() -> Log:
    return Log()


def shell(name: str, script: str, stop_order: int = 0, stop_within_s: float = 8.0) -> ChildSpec:
    """A child that runs a script of sh."""
    return ChildSpec(name, ("/bin/sh", "-c", script), stop_order=stop_order, stop_within_s=stop_within_s)


@pytest.fixture(scope="session")
def fake_nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a libnvidia-ml.so.1 that has as many GPUs as FAKE_NVML_GPUS says."""
    directory = tmp_path_factory.mktemp("nvml")
    build_fake_nvml(directory)
    return directory


def build_fake_nvml(directory: Path) -> None:
    """Compile it into `directory`, for nvidia-ml-py to find by LD_LIBRARY_PATH."""
    source = Path(__file__).with_name("fake_nvml.c")
    library = directory / "libnvidia-ml.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True, timeout=60)
