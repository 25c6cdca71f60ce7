"""Turns into another command that the kernel kills as soon as the process that started it is gone.

    python parent_death.py PARENT_PID COMMAND [ARGUMENT...]

Run by path and on the bare standard library, so that it costs a few milliseconds. It keeps its process id, as it
execs. Doing this in a `preexec_fn` instead would run Python between fork and exec of a process that has threads.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
CANNOT_EXECUTE = 127  # what a shell exits with


def die_with_parent(parent_pid: int) -> None:
    """From here on the kernel kills this process with its parent. Exits when that one is gone already."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        sys.exit(f"prctl(PR_SET_PDEATHSIG): {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent_pid:  # it died before prctl: the signal would never come
        sys.exit(1)


def main(parent_pid: int, command: list[str]) -> None:
    """Exec `command`, to be killed with its parent. Exits when the parent is gone already or nothing can be run."""
    die_with_parent(parent_pid)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.stderr.write(f"cannot run {command[0]}: {error.strerror}\n")
        sys.exit(CANNOT_EXECUTE)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
