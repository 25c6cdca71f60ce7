"""Cleans up after `pdq serve`, however that one ended.

A small process of its own that `pdq serve` starts first and that reads its stdin: one line per child, the process id.
End of file means that `pdq serve` is gone, by a clean stop or by SIGKILL. Then it waits until the children are gone
too (the kernel kills them with their parent), removes the shared memory they left, and the state directory.

Knows process ids, segments and one directory; knows nothing of Redis or models.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from cli.child import child_environment

CHILDREN_GONE_TIMEOUT_S = 5.0


class Janitor:
    """The end that `pdq serve` holds."""

    def __init__(self, state_dir: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "cli.janitor", str(state_dir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env=child_environment({}),
            start_new_session=True,
        )

    def note(self, pid: int) -> None:
        """This child is to be gone before the cleaning."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{pid}\n".encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # somebody killed it; the next start sweeps

    def finish(self, timeout_s: float) -> bool:
        """Let it clean, and wait for it; whether it was done in time."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            return self._process.wait(timeout_s) == 0
        except subprocess.TimeoutExpired:
            return False


def is_alive(pid: int) -> bool:
    """Whether a process of this id runs (a zombie does not: it holds nothing any more)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def clean(pids: list[int], state_dir: Path, timeout_s: float = CHILDREN_GONE_TIMEOUT_S) -> None:
    """Wait for `pids` to go, then remove what they left."""
    from kv_transfer.segment import sweep_segments  # torch-free

    give_up = time.monotonic() + timeout_s
    while any(is_alive(pid) for pid in pids) and time.monotonic() < give_up:
        time.sleep(0.02)
    sweep_segments()
    shutil.rmtree(state_dir, ignore_errors=True)


def main(state_dir: Path) -> None:
    """Wait for the end of stdin, then clean."""
    # What ends `pdq serve` must not end the one who cleans after it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # Not in the directory it was started from: that one may be unmounted while the cluster runs.
    os.chdir("/")
    pids = [int(line) for line in sys.stdin]
    clean(pids, state_dir)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
