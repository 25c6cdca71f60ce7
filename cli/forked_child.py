"""Children that the nursery forks: ordering one, and watching it as asyncio watches those that it started itself.

Knows sockets and process ids; what runs in the child is the nursery's to know.
"""

import asyncio
import ctypes
import os
import signal
import socket
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from cli.child import ChildSpec, Running, open_output, pdq_command, start_child
from cli.nursery import LONGEST_ORDER_BYTES, Born, Order

PR_SET_CHILD_SUBREAPER = 36
LISTENING_TIMEOUT_S = 5.0
LOOK_EVERY_S = 0.01
ORDER_TIMEOUT_S = 60.0  # the first one waits for the nursery's imports

_adopting = threading.Lock()


class ForkedProcess:
    """What supervisors need of `asyncio.subprocess.Process`, for a child that somebody else forked for us."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ended = asyncio.Event()
        descriptor = os.pidfd_open(pid)
        asyncio.get_running_loop().add_reader(descriptor, self._reap, descriptor)

    def _reap(self, descriptor: int) -> None:
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)
        self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self._ended.set()

    async def wait(self) -> int:
        """Its exit code, or minus the signal that ended it."""
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def terminate(self) -> None:
        """Ask it to end."""
        if self.returncode is None:
            os.kill(self.pid, signal.SIGTERM)


async def wait_until_listening(nursery: Path, timeout_s: float = LISTENING_TIMEOUT_S) -> None:
    """Return once it takes orders, which is before it can carry them out; or after `timeout_s`."""
    for _ in range(round(timeout_s / LOOK_EVERY_S)):
        if await asyncio.to_thread(nursery.exists):
            return
        await asyncio.sleep(LOOK_EVERY_S)


async def start(spec: ChildSpec) -> Running:
    """Start it: as a fork where one can be had, else by its command. Call it on the main thread."""
    if spec.nursery is not None:
        try:
            return await fork_child(spec.nursery, spec.command[len(pdq_command()) :], spec.environment)
        except OSError:
            pass  # it has died, or is just being started again
    return await start_child(spec.command, spec.environment)


async def fork_child(nursery: Path, arguments: Sequence[str], environment: Mapping[str, str]) -> Running:
    """A fork of the nursery that listens at this path, running `pdq ARGUMENTS`. Raises OSError when there is none."""
    output, pipe, write_end = await open_output()
    try:
        order = Order(tuple(arguments), dict(environment), os.getpid())
        born = await asyncio.to_thread(_place, nursery, order, write_end)
    except BaseException:
        pipe.close()
        raise
    finally:
        os.close(write_end)
    return Running(ForkedProcess(born.pid), output, pipe)


def _place(nursery: Path, order: Order, write_end: int) -> Born:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(ORDER_TIMEOUT_S)
        connection.connect(str(nursery))
        # Only meanwhile: later orphans, such as the ranks of a worker that died, are for init to reap.
        with _adopting:
            adopt_orphans(True)
            try:
                socket.send_fds(connection, [msgspec.json.encode(order)], [write_end])
                answer = connection.recv(LONGEST_ORDER_BYTES)
            finally:
                adopt_orphans(False)
    if not answer:
        raise ConnectionResetError("the nursery ended")
    return msgspec.json.decode(answer, type=Born)


def adopt_orphans(wanted: bool) -> None:
    """Whether this process becomes the parent of what its descendants leave behind."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
