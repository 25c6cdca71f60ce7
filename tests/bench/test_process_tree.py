"""Memory of a tree of real processes: shared pages count once."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from bench.process_tree import cpu_of_tree_s, memory_of_tree, ticks_of_tree

SHARED_BYTES = 64 << 20
# A parent and two children that have all touched the same memory; they say so and wait.
PROGRAM = f"""
import mmap, os, sys
shared = mmap.mmap(-1, {SHARED_BYTES})
touch = lambda: [shared[place] for place in range(0, {SHARED_BYTES}, 4096)]
shared.write(b"x" * {SHARED_BYTES})
ready, says = os.pipe()
for _ in range(2):
    if not os.fork():
        touch()
        os.write(says, b".")
        sys.stdin.read()
        os._exit(0)
left = 2
while left:
    left -= len(os.read(ready, 2))
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def family() -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
        process.kill()


def test_shared_pages_count_once(family: int) -> None:
    memory = memory_of_tree(family)
    assert memory is not None
    assert len(ticks_of_tree(family)) == 3
    assert memory.rss_bytes > 3 * SHARED_BYTES
    assert SHARED_BYTES < memory.pss_bytes < 2 * SHARED_BYTES


def test_a_process_that_is_not_there_has_no_figures() -> None:
    nobody = 2**22 + 1  # above the largest pid
    assert memory_of_tree(nobody) is None
    assert cpu_of_tree_s(nobody) is None


def test_it_starts_at_the_named_process() -> None:
    assert os.getpid() in ticks_of_tree(os.getpid())
    assert os.getppid() not in ticks_of_tree(os.getpid())
