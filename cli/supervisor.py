"""Keeps children running: starts them, starts them again when they end, and ends them all in order.

Knows processes and nothing of what runs in them. A child that exits with the code of a StartupError before the
cluster was ever ready is not started again: what stops one start stops the next, so `failure` carries it.
"""

import asyncio
import time
from collections.abc import Callable
from itertools import groupby

from cli.child import ChildSpec, Process, describe_exit, kill, terminate
from cli.errors import BY_EXIT_CODE, startup_error
from cli.forked_child import start
from cli.restart import RestartPolicy
from errors import StartupError

DRAIN_OUTPUT_S = 1.0  # a grandchild that left the child's group may hold the pipe open


class Child:
    """A child and the process it is at the moment."""

    def __init__(self, spec: ChildSpec) -> None:
        self.spec = spec
        self.process: Process | None = None
        self.num_starts = 0
        self.last_line = ""

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self.process.pid if self.process is not None and self.process.returncode is None else None


class Supervisor:
    """`announce` gets a sentence per event, `write_line` each line a child writes, `on_start` each process id."""

    def __init__(
        self,
        announce: Callable[[str], None],
        write_line: Callable[[str, str], None],
        on_start: Callable[[int], None] = lambda pid: None,
        policy: RestartPolicy | None = None,
    ) -> None:
        self._announce = announce
        self._write_line = write_line
        self._on_start = on_start
        self._policy = policy or RestartPolicy()
        self._stopping = asyncio.Event()
        self._tasks: dict[Child, asyncio.Task[None]] = {}
        self.failure: asyncio.Future[StartupError] = asyncio.get_running_loop().create_future()
        self.was_ready = False  # set by the owner; from then on every end is followed by a restart

    def keep(self, spec: ChildSpec) -> Child:
        """Start the child and keep it running until `stop`."""
        child = Child(spec)
        self._tasks[child] = asyncio.create_task(self._keep(child), name=spec.name)
        return child

    async def _keep(self, child: Child) -> None:
        failures = 0
        while not self._stopping.is_set():
            started = time.monotonic()
            code = await self._run_once(child)
            if self._stopping.is_set():
                return
            if code in BY_EXIT_CODE and child.num_starts == 1 and not self.was_ready:
                reason = child.last_line.removeprefix("pdq: ") or describe_exit(code)
                if not self.failure.done():
                    self.failure.set_result(startup_error(code, f"{child.spec.name} could not start: {reason}"))
                return
            alive_s = time.monotonic() - started
            failures = self._policy.failures(failures, alive_s)
            delay_s = self._policy.delay_s(failures)
            self._announce(
                f"{child.spec.name} {describe_exit(code)} after {alive_s:.1f} s; starting it again in {delay_s:g} s"
            )
            await wait_event(self._stopping, delay_s)

    async def _run_once(self, child: Child) -> int:
        running = await start(child.spec)
        child.process = running.process
        child.num_starts += 1
        self._on_start(running.process.pid)
        if self._stopping.is_set():  # `stop` has passed while this one was being started
            terminate(running.process)
        output = asyncio.create_task(self._forward_output(child, running.output))
        code = await running.process.wait()
        kill(running.process)  # what it left behind
        await asyncio.wait([output], timeout=DRAIN_OUTPUT_S)
        output.cancel()
        running.pipe.close()
        return code

    async def _forward_output(self, child: Child, output: asyncio.StreamReader) -> None:
        while line := await _read_line(output):
            child.last_line = line.decode(errors="replace").rstrip()
            self._write_line(child.spec.name, child.last_line)

    async def stop(self, now: asyncio.Event) -> None:
        """End every child, order by order, each by its time; all at once as soon as `now` is set."""
        self._stopping.set()
        began = time.monotonic()
        hurry = asyncio.create_task(now.wait())
        children = sorted(self._tasks, key=lambda child: child.spec.stop_order)
        for _, members in groupby(children, key=lambda child: child.spec.stop_order):
            group = list(members)
            for child in group:
                if child.process is not None:
                    terminate(child.process)
            for child in group:
                left_s = max(0.0, began + child.spec.stop_within_s - time.monotonic())
                await asyncio.wait([self._tasks[child], hurry], timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
                if not self._tasks[child].done() and child.process is not None:
                    if not hurry.done():
                        self._announce(f"{child.spec.name} did not end in {child.spec.stop_within_s:g} s; killed")
                    kill(child.process)
                    await asyncio.wait([self._tasks[child]])
        hurry.cancel()
        await asyncio.gather(*self._tasks.values())


async def wait_event(event: asyncio.Event, timeout_s: float) -> bool:
    """Whether the event came within `timeout_s`."""
    try:
        await asyncio.wait_for(event.wait(), timeout_s)
    except TimeoutError:
        return False
    return True


async def _read_line(stream: asyncio.StreamReader) -> bytes:
    """The next line, or a piece of one that is longer than the stream's limit; empty at the end."""
    try:
        return await stream.readuntil(b"\n")
    except asyncio.IncompleteReadError as error:
        return error.partial
    except asyncio.LimitOverrunError as error:
        return await stream.readexactly(error.consumed)
