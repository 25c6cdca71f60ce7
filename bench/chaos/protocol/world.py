"""A whole cluster in one thread: two prefill and two decode workers, an API and a Redis, stepped event by event.

Every event has a kind (kinds.py) and happens to one of its candidates. What must always hold is checked after each.
Knows no random numbers, no Hypothesis and no kind: whoever drives it chooses.
"""

import random
import shutil
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

from redis.exceptions import ConnectionError, TimeoutError

from bench.chaos.protocol.api_process import Api
from bench.chaos.protocol.clock import Clock
from bench.chaos.protocol.connections import open_async
from bench.chaos.protocol.oracle import Oracle, Violation
from bench.chaos.protocol.process import Process
from bench.chaos.protocol.redis_server import SimulatedRedis
from bench.chaos.protocol.shape import LEASE_S, MAX_ATTEMPTS, Shape, settings_of
from bench.chaos.protocol.watched import Offered
from bench.chaos.protocol.workers import SimulatedWorker
from broker.client import Broker, assemble_broker
from broker.keys import LOCAL, Keys
from messages.worker_status import Role

NUM_WORKERS = 2  # of each role

Event = tuple[str, str, int]  # kind, to whom, and what else there was to choose


class World:
    """Use as a context manager."""

    def __init__(self, shape: Shape | None = None) -> None:
        self.shape = shape or Shape()
        self.clock = Clock()
        self.events: Counter[str] = Counter()
        self.trace: list[Event] = []  # what happened, in order
        self.workers: list[SimulatedWorker] = []
        self._exits = ExitStack()
        self._num_started = 0
        self.num_requests = 0
        self.touched: list[Process] = []  # by the event that happens

    def __enter__(self) -> "World":
        self._exits.enter_context(self.clock.installed())
        self._exits.enter_context(patch("redis.backoff.random", random.Random(0)))  # a trace has to be repeatable
        self.directory = Path(tempfile.mkdtemp(prefix="pdq-chaos-", dir="/dev/shm"))
        self._exits.callback(shutil.rmtree, self.directory, ignore_errors=True)
        self.settings = settings_of(self.shape)
        self.redis = SimulatedRedis(self.clock)
        self.keys = Keys(self.settings.redis.key_prefix)
        self.oracle = Oracle(self.redis, self.keys, LEASE_S)
        self.oracle.may_fail = self.shape.max_deliveries < MAX_ATTEMPTS
        self.offered = Offered()
        self._create_groups()
        self.api = Api(Process("api", self.redis), self._assemble, self.oracle)
        for role in (Role.PREFILL, Role.DECODE) * NUM_WORKERS:
            self.start(role)
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.crash(keeps_segment=False)
        self.api.process.kill()
        self._exits.close()

    # -- who is there ----------------------------------------------------------------------------------------------

    @property
    def num_events(self) -> int:
        """Events so far."""
        return len(self.trace)

    @property
    def awake(self) -> list[Process]:
        """Every process that is not frozen."""
        return [self.api.process, *(one.process for one in self.workers if not one.process.is_frozen)]

    @property
    def queues(self) -> list[str]:
        """Every stream of jobs."""
        return [queue for name in (*Role, LOCAL) for queue in self.keys.queues(name)]

    @property
    def busy(self) -> list[SimulatedWorker]:
        """Workers that hold sequences."""
        return [worker for worker in self.workers if worker.has_sequences]

    # -- what must hold ------------------------------------------------------------------------------------------

    def check(self) -> None:
        """After every event: of the processes it touched."""
        for process in self.touched:
            if process.loop.failures:
                raise Violation(f"{process}: {process.loop.failures[0]}")
            worker = next((one for one in self.workers if one.process is process), None)
            if worker is not None:
                self._bury(worker)
                worker.check()
        self.touched.clear()
        if self.api.process.main is not None and self.api.process.main.done():
            raise Violation("the relay ended") from self.api.process.main.exception()
        for client in self.api.clients:
            if client.task is not None and client.task.done() and (error := client.task.exception()) is not None:
                raise Violation(f"client of {client.request.request_id}: {error}") from error

    def _bury(self, worker: SimulatedWorker) -> None:
        """A worker whose loop has ended is no longer there; only a drained one, or one without Redis, may end."""
        main = worker.process.main
        if worker.has_stalled:
            worker.crash(keeps_segment=False)  # as end_stalled does
            self.workers.remove(worker)
        if main is None or not main.done() or worker.has_stalled:
            return
        error = main.exception()
        if error is not None and not _is_redis_away(error):
            raise Violation(f"{worker.process} ended: {_innermost(error)!r}") from error
        if error is None and not worker.is_draining:
            raise Violation(f"{worker.process} ended by itself")
        if error is None:
            worker.retire()
        worker.crash(keeps_segment=False)
        self.workers.remove(worker)

    # -- building ------------------------------------------------------------------------------------------------

    def _assemble(self, process: Process) -> Broker:
        client = open_async(process)
        settings = self.settings
        return assemble_broker(client, client, settings.redis.key_prefix, settings.queue, settings.stream)

    def start(self, role: Role) -> None:
        """One more worker."""
        self._num_started += 1
        process = Process(f"{role.value}-{self._num_started}", self.redis)
        worker = SimulatedWorker(
            role, process, self._assemble(process), self.settings, self.shape, self.directory, self.offered
        )
        self.workers.append(worker)

    def _create_groups(self) -> None:
        """As an API process and every worker does at its start."""
        process = Process("first", self.redis)
        broker = self._assemble(process)
        for queue in (broker.prefill_queue, broker.decode_queue, broker.local_queue):
            task = process.run(queue.ensure())
            while not task.done():
                for link in [link for link in process.links if link.can_serve]:
                    self.redis.serve(link)
                for link in [link for link in process.links if link.can_deliver]:
                    link.deliver()
            task.result()
        process.kill()


def _is_redis_away(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(_is_redis_away(one) for one in error.exceptions)
    return isinstance(error, ConnectionError | TimeoutError)


def _innermost(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
