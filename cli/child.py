"""One child process: what it is, how it is started, how it is ended.

Every child leads a session of its own (Ctrl-C on the terminal reaches the parent alone) and dies with the parent
(`engine/parent_death.py`). Knows nothing of what the commands do.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

ROOT = Path(__file__).resolve().parent.parent
LONGEST_LINE_BYTES = 1 << 20  # a longer one comes in pieces
PARENT_DEATH = ROOT / "engine" / "parent_death.py"


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What to run, and when it has to be gone."""

    name: str  # as people see it: "decode 0"
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)  # on top of this process's own
    stop_order: int = 0  # children of a lower order are ended first
    stop_within_s: float = 8.0  # since the stop began; SIGKILL after that
    nursery: Path | None = None  # where a fork that does the same may be had, of a `pdq_command`


def pdq_command(*arguments: str) -> tuple[str, ...]:
    """`pdq ARGUMENTS` as this very installation runs it, whatever PATH or the current directory hold."""
    return (sys.executable, "-P", "-m", "cli", *arguments)


def child_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """This process's environment for a child, with `extra` on top and our rooms importable from any directory."""
    # Handing the environment on is not reading settings from it.
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", **extra}


class Process(Protocol):
    """A child: asyncio's own, or one that was forked for us (`cli/forked_child.py`)."""

    @property
    def pid(self) -> int: ...

    @property
    def returncode(self) -> int | None: ...

    async def wait(self) -> int:
        """Until it has ended; its exit code, or minus the signal that ended it."""
        ...

    def terminate(self) -> None:
        """Ask it to end."""
        ...


@dataclass(frozen=True, slots=True)
class Running:
    """A started process and what it writes."""

    process: Process
    output: asyncio.StreamReader  # stdout and stderr, as they come
    pipe: asyncio.BaseTransport


async def open_output() -> tuple[asyncio.StreamReader, asyncio.BaseTransport, int]:
    """A pipe for what a child writes: where we read it, what closes it, and the child's end, which is ours to close.

    The pipe is ours and not asyncio's, whose `wait()` lasts until every grandchild has closed it too.
    """
    output = asyncio.StreamReader(limit=LONGEST_LINE_BYTES)
    read_end, write_end = os.pipe()
    try:
        pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(output), os.fdopen(read_end, "rb", buffering=0)
        )
    except BaseException:
        os.close(write_end)
        raise
    return output, pipe, write_end


async def start_child(command: Sequence[str], environment: Mapping[str, str]) -> Running:
    """Start `command`. Call it on the main thread: the kernel takes the starting thread's death for the parent's."""
    output, pipe, write_end = await open_output()
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", str(PARENT_DEATH), str(os.getpid())),
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=write_end,
            stderr=write_end,
            env=child_environment(environment),
            start_new_session=True,
        )
    finally:
        os.close(write_end)
    return Running(process, output, pipe)


def terminate(process: Process) -> None:
    """Ask the process to end."""
    if process.returncode is None:
        process.terminate()


def kill(process: Process) -> None:
    """End the process and all that it started, now; what it started also when it has ended itself."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # nobody of its group is left


def describe_exit(code: int) -> str:
    """What `Process.returncode` says, in words."""
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"exited with code {code}"
