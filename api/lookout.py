"""What this API process remembers of the cluster's last minutes, for the page: timelines, incidents, curves.

Costs what a look at the registry costs that is taken anyway, and one question to Redis every two seconds. Knows the
broker and the clock; what it sees is judged by the parts.
"""

import asyncio
import time
from collections.abc import Sequence

from redis.exceptions import RedisError

from api.curves import EVERY_S, Curves
from api.incidents import Incidents
from api.meters import ApiMeters
from broker.client import Broker
from broker.queue_waits import read_waits
from messages.worker_status import WorkerStatus


class Lookout:
    """One per API process. `sample` must run for the curves to grow."""

    def __init__(self, broker: Broker, meters: ApiMeters) -> None:
        self.timelines = meters.timelines
        self.incidents = Incidents()
        self.curves = Curves(meters)
        self._broker = broker
        self._num_running: int | None = None

    def look(self, workers: Sequence[WorkerStatus] | None) -> None:
        """The live workers as of now; None: Redis did not say."""
        now_ms = int(time.time() * 1000)
        if workers is None:
            self._num_running = None
            self.incidents.redis_away(now_ms)
            return
        self._num_running = sum(worker.num_running for worker in workers)
        self.incidents.look(workers, now_ms)
        self.incidents.continued(self.timelines.note(workers))

    async def sample(self) -> None:
        """A point of each curve every EVERY_S, for ever."""
        while True:
            try:
                waits = await read_waits(self._broker.redis, self._broker.keys)
                num_waiting = sum(wait.num_jobs for wait in waits)
            except RedisError:  # `look` is told of it too
                num_waiting = None
            self.curves.sample(int(time.time() * 1000), num_waiting, self._num_running)
            await asyncio.sleep(EVERY_S)
