"""A process that holds torch and the workers' rooms and computes nothing: workers on a CPU are forked from it.

Loading torch takes a worker 1.5 s of a core and 130 MB of its own. Here it is done once, while Redis and the API start;
the forks share the pages, and a worker that was killed is back without loading anything. Each fork is `pdq prefill` or
`pdq decode` as if it had been started by itself: it leads a session, writes where the order says, is the child of
whoever ordered it and dies with that one. Should the nursery itself die, the workers do not notice.

No thread may run here when it forks, and nothing of torch may be used: OpenMP's threads would not come along. It has no
CUDA for the same reason. Knows no settings.
"""

import ctypes
import gc
import os
import socket
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import msgspec

PRELOAD = ("cli.__main__", "prefill_worker.assembly", "decode_worker.assembly", "safetensors")
LONGEST_ORDER_BYTES = 1 << 17
NUM_WAITING_ORDERS = 64


class Order(msgspec.Struct, frozen=True):
    """A worker that is wanted. Its output goes to the one file descriptor that comes along."""

    arguments: tuple[str, ...]  # of the command `pdq`
    environment: dict[str, str]  # on top of the nursery's own
    parent: int  # process id of who orders and has made itself a subreaper


class Born(msgspec.Struct, frozen=True):
    """The answer, once the worker is the child of who ordered it."""

    pid: int


def main(path: str) -> None:
    """Listen at once, so that orders wait for the imports; then fork. In a worker: run its command."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        # It appears under its name when it takes orders, in place of one that died.
        listener.bind(f"{path}.new")
        listener.listen(NUM_WAITING_ORDERS)
        os.rename(f"{path}.new", path)
        _load()
        order = _serve(listener)
    os.environ.update(order.environment)
    _rename((sys.executable, "-P", "-m", "cli", *order.arguments))
    from cli.__main__ import main as pdq

    pdq(order.arguments)


def _load() -> None:
    from engine.threads import let_idle_threads_sleep

    let_idle_threads_sleep()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's would be threads
    for module in PRELOAD:
        import_module(module)
    gc.collect()
    gc.freeze()  # so that no collection in a fork writes to the pages that all share


def _serve(listener: socket.socket) -> Order:
    """Fork a worker per order. Returns in each worker, and in the nursery never."""
    while True:
        connection, _ = listener.accept()
        with connection:
            message, descriptors, _, _ = socket.recv_fds(connection, LONGEST_ORDER_BYTES, 1)
            if not message or len(descriptors) != 1:
                continue  # who ordered is gone
            order = msgspec.json.decode(message, type=Order)
            pid = _bear(order, descriptors[0])
            if pid is None:
                return order
            os.close(descriptors[0])
            try:
                connection.send(msgspec.json.encode(Born(pid)))
            except BrokenPipeError:
                pass  # it is gone, and the worker with it


def _bear(order: Order, output: int) -> int | None:
    """The new worker's process id; None in the worker itself.

    By way of a process that ends at once: the orphan it leaves becomes the child of the nearest subreaper.
    """
    hears, says = os.pipe()
    between = os.fork()
    if between:
        os.close(says)
        with os.fdopen(hears, "rb") as pipe:
            pid = int(pipe.read())
        os.waitpid(between, 0)
        return pid
    between = os.getpid()
    pid = os.fork()
    if pid:
        os.write(says, str(pid).encode())
        os._exit(0)
    from engine.parent_death import die_with_parent

    os.close(hears)
    os.close(says)
    os.setsid()
    while os.getppid() == between:
        time.sleep(0.001)
    die_with_parent(order.parent)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    return None


def _rename(command: Sequence[str]) -> None:
    """What `ps` shows of this process from here on."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    begin, end = int(fields[45]), int(fields[46])  # arg_start, arg_end
    text = "\0".join(command).encode()
    if begin and len(text) < end - begin:
        ctypes.memmove(begin, text.ljust(end - begin, b"\0"), end - begin)


if __name__ == "__main__":
    main(sys.argv[1])
