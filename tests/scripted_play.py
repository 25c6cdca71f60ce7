"""A scenario on a fresh scripted cluster: what the tests of both workers share."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from settings.broker import QueueSettings, RedisSettings
from tests.conftest import OpenTestBroker
from tests.scripted_cluster import ScriptedCluster, scripted_cluster

QUEUE = QueueSettings(lease_s=0.4, heartbeat_s=0.1, drain_s=2.0)
PROMPT = list(range(1000, 1040))  # 2.5 blocks

Scenario = Callable[[ScriptedCluster], Awaitable[None]]
Play = Callable[[Scenario], None]


def scripted_play(queue: QueueSettings) -> Any:
    """A test file's fixture `play`."""

    @pytest.fixture
    def play(open_test_broker: OpenTestBroker, redis_settings: RedisSettings) -> Play:
        """Run a scenario on a fresh cluster without workers."""

        def run(scenario: Scenario) -> None:
            async def main() -> None:
                async with (
                    open_test_broker(queue=queue) as broker,
                    scripted_cluster(broker, redis_settings, queue) as cluster,
                ):
                    await scenario(cluster)

            asyncio.run(main())

        return run

    return play


class Gate:
    """Stops whoever is about to do what `holds`, until opened: a runner before its step, a receiver before its pull."""

    def __init__(self, holds: Callable[[Any], bool] = lambda what: True) -> None:
        self._holds = holds
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self, what: Any) -> None:
        if self._holds(what):
            self.reached.set()
            assert self.opened.wait(20)
