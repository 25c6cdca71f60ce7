"""A cancelled command is cancelled, at whatever moment the cancellation comes."""

import asyncio
import time
from typing import Any

import pytest
from redis.asyncio.connection import Connection

from broker.connection import PromptConnection
from tests.conftest import OpenTestBroker


def test_a_blocking_read_is_cancelled_at_any_moment(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            await broker.prefill_queue.ensure()
            started_s = time.monotonic()
            for num_turns in range(40):  # one turn of the event loop later each time
                taking = asyncio.create_task(broker.prefill_queue.take("w", 1, block_ms=10_000))
                for _ in range(num_turns):
                    await asyncio.sleep(0)
                taking.cancel()
                done, _ = await asyncio.wait([taking], timeout=5)
                assert done and taking.cancelled(), f"cancelled after {num_turns} turns"
            assert time.monotonic() - started_s < 5

    asyncio.run(main())


def test_a_task_may_use_redis_while_it_is_being_cancelled(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            depths = []

            async def work() -> None:
                try:
                    await broker.prefill_queue.take("w", 1, block_ms=10_000)
                finally:
                    depths.append(await broker.prefill_queue.depth())

            working = asyncio.create_task(work())
            await asyncio.sleep(0)
            working.cancel()
            await asyncio.wait([working], timeout=5)
            working_again = asyncio.create_task(work())
            await broker.redis.ping()
            working_again.cancel()
            await asyncio.wait([working_again], timeout=5)
            assert depths and set(depths) == {0}

    asyncio.run(main())


@pytest.mark.parametrize(
    "command",
    [
        ("PING",),
        ("CONFIG RESETSTAT",),
        ("XADD", "key", "MAXLEN", b"~", 4096, "*", "naïve", b"\x00\r\n", -3, 0.1, 1e300),
        (b"GET", bytearray(b"key"), memoryview(b"more")),
        ("SET", "key", "x" * 10_000),
    ],
)
def test_commands_are_packed_as_redis_py_packs_them(command: tuple[Any, ...]) -> None:
    assert b"".join(PromptConnection().pack_command(*command)) == b"".join(Connection().pack_command(*command))


def test_more_than_the_socket_takes_is_sent_too(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            sizes = [1, 1 << 16, 1 << 23, 3]
            for size in sizes:
                await broker.redis.set(broker.keys.pulse(), b"x" * size)
                assert await broker.redis.strlen(broker.keys.pulse()) == size

    asyncio.run(main())
