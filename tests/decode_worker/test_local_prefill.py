"""A decode worker prefills prompts itself: the same text, and every way it can end in the middle. Real Redis, real blocks."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from decode_worker.worker import DecodeWorker
from engine.sequence import Sequence
from settings import QueueSettings, RedisSettings
from tests.conftest import OpenTestBroker
from tests.scripted_cluster import Member, ScriptedCluster, expected_output, scripted_cluster, tokens_of

QUEUE = QueueSettings(lease_s=0.4, heartbeat_s=0.1, drain_s=2.0)
PROMPT = list(range(1000, 1040))  # 2.5 blocks

Scenario = Callable[[ScriptedCluster], Awaitable[None]]
Play = Callable[[Scenario], None]


@pytest.fixture
def play(open_test_broker: OpenTestBroker, redis_settings: RedisSettings) -> Play:
    """Run a scenario on a fresh cluster without workers."""

    @asynccontextmanager
    async def cluster() -> AsyncIterator[ScriptedCluster]:
        async with open_test_broker(queue=QUEUE) as broker, scripted_cluster(broker, redis_settings, QUEUE) as running:
            yield running

    def run(scenario: Scenario) -> None:
        async def main() -> None:
            async with cluster() as running:
                await scenario(running)

        asyncio.run(main())

    return run


async def until_bidding(cluster: ScriptedCluster) -> None:
    """A decode worker stands and waits for a prompt."""
    give_up = asyncio.get_running_loop().time() + 5
    while not await cluster.broker.redis.hlen(cluster.broker.keys.bids()):
        assert asyncio.get_running_loop().time() < give_up, "nobody bids"
        await asyncio.sleep(0.01)


def local(member: Member) -> DecodeWorker:
    assert isinstance(member.worker, DecodeWorker)
    return member.worker


def test_a_waiting_decode_worker_gets_the_prompt_and_no_transfer_is_made(play: Play) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        prefill, decode = cluster.start_prefill(), cluster.start_decode(local_prefill="always")
        await until_bidding(cluster)
        events = await cluster.ended(await cluster.send(PROMPT, 30))
        assert tokens_of(events) == expected_output(PROMPT, 30)
        assert (prefill.runner.num_computed, decode.runner.num_computed) == (0, 69)
        assert decode.receiver is not None
        assert all(count.pulls == 0 for count in decode.receiver.counts.values())
        await cluster.until_clean()

    play(scenario)
