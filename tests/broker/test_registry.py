"""A cluster serves one model in blocks of one size."""

import asyncio

import pytest

from broker.heartbeat import Heartbeat
from broker.status_board import StatusBoard
from errors import ModelError
from messages.worker_status import Role, WorkerState
from settings.broker import QueueSettings, RedisSettings
from tests.broker.samples import eventually
from tests.conftest import OpenTestBroker

SETTINGS = QueueSettings(lease_s=0.5, heartbeat_s=0.02)


def test_another_model_or_block_size_under_the_same_prefix_is_refused(
    open_test_broker: OpenTestBroker, redis_settings: RedisSettings
) -> None:
    board = StatusBoard(Role.DECODE)

    async def main() -> None:
        async with open_test_broker(queue=SETTINGS) as broker:

            async def is_live() -> bool:
                return len(await broker.registry.live()) == 1

            heartbeat = Heartbeat(redis_settings, SETTINGS, board.worker_id, board.role, board.read)
            heartbeat.start()
            try:
                await eventually(is_live)
                await broker.registry.refuse_mixed("ours", 16)  # the other one has not loaded its model yet
                board.ready(model_hash="theirs", block_size=16, num_blocks=4)

                async def is_ready() -> bool:
                    return [status.state for status in await broker.registry.live()] == [WorkerState.READY]

                await eventually(is_ready)
                await broker.registry.refuse_mixed("theirs", 16)
                for model_hash, block_size in (("ours", 16), ("theirs", 32)):
                    with pytest.raises(ModelError, match=f"{board.worker_id}.*PDQ_REDIS__KEY_PREFIX"):
                        await broker.registry.refuse_mixed(model_hash, block_size)
            finally:
                heartbeat.stop()
            await broker.registry.refuse_mixed("ours", 16)

    asyncio.run(main())
