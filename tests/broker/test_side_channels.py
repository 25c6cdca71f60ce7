"""Inbox and cancels: small messages beside the token path."""

import asyncio
from contextlib import aclosing

from broker.client import Broker
from messages.kv_transfer import Release
from settings.broker import RedisSettings
from tests.broker.samples import ABORT, begin, eventually
from tests.conftest import OpenTestBroker, RedisServer


def test_the_inbox_delivers_in_order_and_once_and_expires(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            inbox = broker.inbox("w")
            assert await inbox.receive() == []
            for number in range(3):
                await broker.inbox("w").send(Release(f"t{number}"))
            await broker.inbox("other").send(Release("not mine"))
            assert await inbox.receive(block_ms=5000) == [Release("t0"), Release("t1"), Release("t2")]
            assert await inbox.receive() == [] == await inbox.receive(block_ms=1)
            assert 0 < await broker.redis.ttl(broker.keys.inbox("w")) <= 60
            waiting = asyncio.create_task(inbox.receive(block_ms=60_000))
            await broker.inbox("w").send(Release("t3"))
            assert await asyncio.wait_for(waiting, 5) == [Release("t3")]

    asyncio.run(main())


async def num_listeners(broker: Broker) -> int:
    ((_, count),) = await broker.redis.pubsub_numsub(broker.keys.cancels())
    return int(count)


def test_cancels_tell_what_was_finished_and_reconnect(
    own_redis: RedisServer, key_prefix: str, open_test_broker: OpenTestBroker
) -> None:
    redis = RedisSettings(url=own_redis.url, key_prefix=key_prefix)

    async def main() -> None:
        async with open_test_broker(redis=redis) as broker:
            heard: list[tuple[str, int]] = []

            async def listen() -> None:
                async with aclosing(broker.cancels.listen()) as cancels:
                    async for cancel in cancels:
                        heard.append(cancel)

            async def is_listening() -> bool:
                return await num_listeners(broker) == 1

            async def is_heard() -> bool:
                return bool(heard)

            async with asyncio.TaskGroup() as tasks:
                listener = tasks.create_task(listen())
                await eventually(is_listening)
                await begin(broker, "a:b", n=2)
                await broker.requests.finish("a:b", 1, ABORT)
                await eventually(is_heard)
                assert heard == [("a:b", 1)]
                heard.clear()
                own_redis.stop()
                own_redis.start()
                await eventually(is_listening)
                await begin(broker, "second")
                await broker.requests.finish("second", 0, ABORT)
                await eventually(is_heard)
                assert heard == [("second", 0)]
                listener.cancel()

    asyncio.run(main())


def test_what_is_no_release_is_passed_over(open_test_broker: OpenTestBroker) -> None:
    """It would end the worker that reads it, and then the next one."""

    async def main() -> None:
        async with open_test_broker() as broker:
            inbox = broker.inbox("w")
            key = broker.keys.inbox("w")
            await broker.redis.xadd(key, {"release": b"\x01nonsense"})
            await broker.redis.xadd(key, {"other": b""})
            await inbox.send(Release("t0"))
            assert await inbox.receive() == [Release("t0")]
            assert await inbox.receive() == []

    asyncio.run(main())


def test_what_names_no_choice_is_passed_over(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker() as broker, aclosing(broker.cancels.listen()) as cancels:
            heard = asyncio.ensure_future(anext(cancels))

            async def is_listening() -> bool:
                return await num_listeners(broker) == 1

            await eventually(is_listening)
            for nonsense in (b"", b"request", b"request:first", b"\xff:0"):
                await broker.redis.publish(broker.keys.cancels(), nonsense)
            await broker.redis.publish(broker.keys.cancels(), b"request:0")
            assert await asyncio.wait_for(heard, 5) == ("request", 0)

    asyncio.run(main())
