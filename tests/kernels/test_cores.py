"""The ledger of cores: who computes takes its share, who stops, however that comes, gives it back."""

import ctypes
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kernels import cpu_build
from kernels.cores import NUM_SLOTS, open_ledger, take_cores

ROOT = Path(__file__).parents[2]
WAIT_S = 20.0

# Computes, or waits, as it is told; says how many threads it may use when asked.
WORKER = """
import ctypes, sys, threading, torch
from pathlib import Path
from kernels import cpu_build
from kernels.cores import open_ledger, prompts_of_others, show_prompts, use_cores
library = cpu_build.load()
use_cores(library, int(sys.argv[2]), open_ledger(Path(sys.argv[1])))
library.pdq_threads_now.restype = ctypes.c_int64
x = torch.ones(64, 4096)
from kernels.greedy import fused_greedy
computing = threading.Event()
def compute():
    while True:
        computing.wait()
        fused_greedy(library, x)
threading.Thread(target=compute, daemon=True).start()
print("ready", flush=True)
for line in sys.stdin:
    match line.strip():
        case "compute": computing.set()
        case "wait": computing.clear()
        case "ask": print(library.pdq_threads_now(), flush=True)
        case "prompts": print(prompts_of_others(library), flush=True)
        case "three": show_prompts(library, 3)
"""


class Worker:
    def __init__(self, directory: Path, num_threads: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(directory), str(num_threads)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._read() == "ready"

    def tell(self, what: str) -> None:
        assert self.process.stdin is not None
        print(what, file=self.process.stdin, flush=True)

    def threads(self) -> int:
        self.tell("ask")
        return int(self._read())

    def prompts_of_others(self) -> int:
        self.tell("prompts")
        return int(self._read())

    def _read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[int], Worker]]:
    if cpu_build.load() is None:
        pytest.skip("no C++ compiler here, or no AVX2")
    workers = []

    def starting(num_threads: int) -> Worker:
        workers.append(Worker(tmp_path, num_threads))
        return workers[-1]

    yield starting
    for worker in workers:
        worker.process.kill()
        worker.process.communicate()


def until(worker: Worker, threads: int) -> None:
    """Wait until the worker may use so many threads."""
    end = time.monotonic() + WAIT_S
    while (now := worker.threads()) != threads:
        assert time.monotonic() < end, f"still {now} threads, not {threads}"


def test_who_computes_takes_its_share_and_gives_it_back(start: Callable[[int], Worker]) -> None:
    one, other = start(4), start(4)
    until(one, 4)
    other.tell("compute")
    until(one, 2)
    other.tell("wait")
    until(one, 4)
    other.tell("compute")
    until(one, 2)
    other.process.kill()
    until(one, 4)


def test_what_does_not_divide_goes_to_the_first(start: Callable[[int], Worker]) -> None:
    one, other = start(3), start(3)
    one.tell("compute")
    other.tell("compute")
    until(one, 2)
    until(other, 1)


def test_nobody_gets_less_than_one(start: Callable[[int], Worker]) -> None:
    workers = [start(2) for _ in range(3)]
    for worker in workers:
        worker.tell("compute")
    for worker, threads in zip(workers, (1, 1, 1), strict=True):
        until(worker, threads)


def test_prompts_are_seen_while_they_are_computed(start: Callable[[int], Worker]) -> None:
    one, other = start(2), start(2)
    other.tell("three")
    other.tell("compute")
    until(one, 1)
    assert one.prompts_of_others() == 3
    other.tell("wait")
    until(one, 2)
    assert one.prompts_of_others() == 0


def test_slots_are_taken_by_the_living(tmp_path: Path) -> None:
    """Locks are a process's: the ones that die free theirs, so a ledger never fills up."""
    if cpu_build.load() is None:
        pytest.skip("no C++ compiler here, or no AVX2")
    for _ in range(3):
        script = f"""
import sys
from pathlib import Path
from kernels.cores import open_ledger
print(open_ledger(Path({str(tmp_path)!r})).slot)
"""
        done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "0"
    assert NUM_SLOTS > 8


def test_no_shared_memory_is_no_ledger(tmp_path: Path) -> None:
    assert open_ledger(tmp_path / "missing") is None


def test_the_library_is_told() -> None:
    library = cpu_build.load()
    if library is None:
        pytest.skip("no C++ compiler here, or no AVX2")
    library.pdq_threads_now.restype = ctypes.c_int64
    take_cores(library, 5)  # whatever ledger a test before this one has left in the process
    assert library.pdq_threads_now() == 5
    library.pdq_set_threads(0)
    assert library.pdq_threads_now() == 1
    library.pdq_set_threads(2)
