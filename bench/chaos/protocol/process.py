"""One process of a simulated cluster: an event loop, threads that are fibers, connections, and the ways it can end.

Knows nothing of what runs in it.
"""

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from typing import Any

from redis.exceptions import ConnectionError

from bench.chaos.protocol.event_loop import SimulatedLoop
from bench.chaos.protocol.fiber import Fiber, Sleep
from bench.chaos.protocol.redis_server import Link, SimulatedRedis


class Job:
    """Work on a thread. It begins and goes on when the simulation says so, unless it waits for Redis."""

    def __init__(
        self, process: "Process", name: str, work: Callable[[], Any], on_done: Callable[["Job"], None]
    ) -> None:
        self.process, self.name, self.on_done = process, name, on_done
        self.fiber = Fiber(work)

    def __str__(self) -> str:
        return f"{self.process} {self.name}"


class Process:
    """Lives until `kill`, or until its main task ends."""

    def __init__(self, name: str, redis: SimulatedRedis) -> None:
        self.name = name
        self.redis = redis
        self.loop = SimulatedLoop(redis.clock, self._on_job)  # type: ignore[abstract]
        self.jobs: list[Job] = []  # that can go on
        self.waiting_jobs: list[Job] = []  # for an answer of Redis
        self.sleeping_jobs: list[Job] = []
        self.later_jobs: list[Job] = []  # whose threads have something to do before
        self.links: list[Link] = []
        self.renewing: frozenset[tuple[str, bytes]] = frozenset()  # queue entries that it works on, as of its last beat
        self.is_frozen = False
        self.is_dead = False
        self.pausing = ("pull", "heartbeat")  # threads that can stop half way
        self.main: asyncio.Task[Any] | None = None
        self._tasks: list[asyncio.Task[Any]] = []
        self._numbers = itertools.count()

    def __str__(self) -> str:
        return self.name

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Start a task."""
        task = self.loop.create_task(coroutine)
        self._tasks = [*(one for one in self._tasks if not one.done()), task]
        self.wake()
        return task

    def wake(self) -> None:
        """Go on until everybody waits."""
        self.loop.run_ready()

    def call(self, function: Callable[[], Any]) -> None:
        """Something happens in the loop, e.g. a signal."""
        self.loop.call_soon(function)
        self.wake()

    # -- Redis ---------------------------------------------------------------------------------------------------

    def check_alive(self) -> None:
        """Whoever still talks to Redis while the process is taken down is told to stop. Raises CancelledError."""
        if self.is_dead:
            raise asyncio.CancelledError

    def open_link(self) -> Link:
        """Connect."""
        if self.is_dead:
            raise ConnectionError("the process is gone")
        link = self.redis.open(self, f"{self.name} link {next(self._numbers)}")
        self.links = [*(one for one in self.links if one.is_open or one.can_deliver), link]
        return link

    # -- threads -------------------------------------------------------------------------------------------------

    def start_thread(self, name: str, work: Callable[[], Any], on_done: Callable[[Job], None]) -> None:
        """Work on the thread of that name, after what it was given before."""
        is_busy = any(job.name == name for job in (*self.jobs, *self.waiting_jobs, *self.sleeping_jobs))
        (self.later_jobs if is_busy else self.jobs).append(Job(self, name, work, on_done))

    def go_on(self, job: Job) -> None:
        """The thread runs until it pauses or ends."""
        self.jobs.remove(job)
        self._resume(job)

    def wake_up(self, job: Job) -> None:
        """The thread has slept long enough."""
        self.sleeping_jobs.remove(job)
        self._resume(job)

    def _resume(self, job: Job, value: Any = None) -> None:
        fiber = job.fiber
        if job.name in self.pausing:
            fiber.resume(value)
        else:
            fiber.run_through()
        if fiber.is_done:
            following = next((later for later in self.later_jobs if later.name == job.name), None)
            if following is not None:
                self.later_jobs.remove(following)
                self.jobs.append(following)
            job.on_done(job)
            self.wake()
        elif fiber.paused_for is None:
            self.jobs.append(job)
        elif isinstance(fiber.paused_for, Sleep):
            self.sleeping_jobs.append(job)
        else:
            link: Link = fiber.paused_for
            self.waiting_jobs.append(job)

            def take(answer: Any) -> None:
                self.waiting_jobs.remove(job)
                self._resume(job, answer)

            link.reader = take

    def _on_job(self, executor: Any, work: Callable[[], Any], future: "asyncio.Future[Any]") -> None:
        def on_done(job: Job) -> None:
            if future.cancelled():
                return
            if job.fiber.error is not None:
                future.set_exception(job.fiber.error)
            else:
                future.set_result(job.fiber.result)

        self.start_thread(executor._thread_name_prefix, work, on_done)

    # -- the end -------------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """SIGKILL: nothing of it goes on. What it sent may still reach Redis."""
        self.is_dead = True
        for jobs in (self.jobs, self.waiting_jobs, self.sleeping_jobs, self.later_jobs):
            for job in jobs:
                job.fiber.kill()
            jobs.clear()
        for link in list(self.links):
            link.reader = None
            link.drop(ConnectionError("the process is gone"))
        for _ in range(10):  # a clean-up that awaits something is cancelled again
            for task in self._all_tasks():
                task.cancel()
            self.loop.run_ready()
        assert not self._all_tasks(), f"{self.name} does not end"

    def _all_tasks(self) -> list["asyncio.Task[Any]"]:
        return [task for task in asyncio.all_tasks(self.loop) if not task.done()]
