"""The relay reader: every event in order and once, whatever the relay stream loses or repeats."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from unittest.mock import patch

import pytest

from broker.client import Broker
from broker.relay import RelayReader
from broker.subscription import Subscription
from messages.token_event import FinishReason, RelayedEvent, RelayedEvents, TokenEvent
from messages.wire import encode
from settings.broker import RedisSettings, StreamSettings
from tests.broker.samples import (
    ABORT,
    API_ID,
    STOP,
    begin,
    eventually,
    make_append,
    make_request,
    num_blocked,
    relay_entry,
    take_all,
)
from tests.conftest import OpenTestBroker, RedisServer

QUICK = StreamSettings(recheck_s=0.05)
SLOW = StreamSettings(recheck_s=1000)  # nothing comes but by the relay, and for gaps


@asynccontextmanager
async def reading(broker: Broker) -> AsyncIterator[RelayReader]:
    reader = RelayReader(broker, API_ID)
    task = asyncio.create_task(reader.run())
    try:
        yield reader
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def collect(subscription: Subscription) -> list[tuple[int, TokenEvent]]:
    """(index, event) of everything up to and with the terminal event."""
    first = subscription.next_index - subscription.num_ready
    return list(enumerate(await take_all(subscription), first))


def test_events_come_by_the_relay_alone_and_the_reader_may_be_first(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker(stream=SLOW) as broker, reading(broker) as reader:

            async def is_blocked() -> bool:
                return await num_blocked(broker) > 0

            await eventually(is_blocked)  # on a key that does not exist
            subscription = reader.open("request", 0)
            _, taken = await begin(broker)
            for index in range(5):
                await broker.requests.append([make_append(taken, index)])
            await broker.requests.append([make_append(taken, 5, STOP)])
            events = await collect(subscription)
            assert [index for index, _ in events] == list(range(6))
            assert [event.token_id for _, event in events] == [100, 101, 102, 103, 104, 2]
            reader.close(subscription)
            reader.close(subscription)
            assert reader.num_subscriptions == 0

    asyncio.run(main())


def test_many_streams_and_subscriptions_at_once(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker(stream=SLOW) as broker, reading(broker) as reader:
            num_requests, num_events = 40, 15
            subscriptions = [reader.open(f"r{i}", 0) for i in range(num_requests)]
            twin = reader.open("r3", 0)
            late = reader.open("r4", 0, after=9)
            taken = [(await begin(broker, f"r{i}"))[1] for i in range(num_requests)]
            for index in range(num_events):
                event = STOP if index == num_events - 1 else None
                await broker.requests.append([make_append(each, index, event) for each in taken])
            for subscription in [*subscriptions, twin]:
                assert [event.token_id for event in await take_all(subscription)] == [*range(100, 114), 2]
            assert [event.token_id for event in await take_all(late)] == [*range(110, 114), 2]

    asyncio.run(main())


def test_a_gap_is_filled_at_once_and_repeats_are_dropped(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker(stream=SLOW) as broker, reading(broker) as reader:
            _, taken = await begin(broker)
            for index in range(4):  # the relay has nothing of these
                await broker.requests.append([make_append(taken, index, api_id="")])
            subscription = reader.open("request", 0)
            await broker.requests.append([make_append(taken, 4)])
            repeat = relay_entry(("request:0", 4, TokenEvent(104)), ("request:0", 0, TokenEvent(100)))
            await broker.redis.xadd(broker.keys.relay(API_ID), repeat)
            await broker.requests.append([make_append(taken, 5, STOP)])
            # recheck_s / 4 is far beyond this test's time limit: only the gap itself can have caused the fill.
            events = await collect(subscription)
            assert [event.token_id for _, event in events] == [100, 101, 102, 103, 104, 2]
            assert subscription.num_ready == 0

    asyncio.run(main())


def test_a_quiet_stream_is_rechecked(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker(stream=QUICK) as broker, reading(broker) as reader:
            subscription = reader.open("request", 0)
            _, taken = await begin(broker)
            await broker.requests.append([make_append(taken, 0, api_id="")])  # its relay entry got lost
            assert await subscription.take(5) == [TokenEvent(100)]
            await broker.requests.finish("request", 0, ABORT)  # and this one has none
            assert await collect(subscription) == [(1, ABORT)]

    asyncio.run(main())


def test_random_losses_never_show(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        random_source = random.Random(5)
        async with open_test_broker(stream=QUICK) as broker, reading(broker) as reader:
            subscriptions = [reader.open(f"r{i}", 0) for i in range(8)]
            taken = [(await begin(broker, f"r{i}"))[1] for i in range(8)]
            for index in range(30):
                event = STOP if index == 29 else None
                lost = ["" if random_source.random() < 0.4 else API_ID for _ in taken]
                items = [make_append(t, index, event, api) for t, api in zip(taken, lost, strict=True)]
                random_source.shuffle(items)
                await broker.requests.append(items)
                if random_source.random() < 0.1:
                    await broker.redis.delete(broker.keys.relay(API_ID))
            for subscription in subscriptions:
                assert [event.token_id for event in await take_all(subscription)] == [*range(100, 129), 2]
                assert subscription.num_ready == 0

    asyncio.run(main())


def test_a_relay_whose_ids_began_anew_is_read_again(
    open_test_broker: OpenTestBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.relay._BLOCK_MS", 20)

    async def main() -> None:
        async with open_test_broker(stream=QUICK) as broker, reading(broker) as reader:
            key = broker.keys.relay(API_ID)
            await broker.redis.xadd(key, relay_entry(("nobody:0", 0, STOP)), id="99999999999999-0")
            subscription = reader.open("request", 0)
            _, taken = await begin(broker)
            probe = reader.open("probe", 0)
            await broker.redis.xadd(key, relay_entry(("probe:0", 0, STOP)), id="99999999999999-1")
            await collect(probe)  # the reader's position is now in the far future
            await broker.redis.delete(key)
            await broker.requests.append([make_append(taken, 0)])
            assert await subscription.take(5) == [TokenEvent(100)]

            async def is_following() -> bool:
                last: Any = await broker.redis.xrevrange(key, count=1)
                return bool(reader._position == last[0][0])

            await eventually(is_following)
            await broker.requests.append([make_append(taken, 1, STOP)])
            assert (await collect(subscription))[-1] == (1, STOP)

    asyncio.run(main())


def test_a_request_that_redis_lost_ends_with_an_error(
    own_redis: RedisServer, key_prefix: str, open_test_broker: OpenTestBroker
) -> None:
    async def main() -> None:
        redis = RedisSettings(url=own_redis.url, key_prefix=key_prefix)
        async with open_test_broker(redis=redis, stream=QUICK) as broker, reading(broker) as reader:
            subscription, unseen = reader.open("request", 0), reader.open("never-created", 0)
            _, taken = await begin(broker)
            await broker.requests.append([make_append(taken, 0)])
            assert await subscription.take(5) == [TokenEvent(100)]
            own_redis.stop()  # its data goes with it
            own_redis.start()
            ((index, event),) = await collect(subscription)
            assert (index, event.finish_reason, event.error_status) == (1, FinishReason.ERROR, 500)
            assert (await collect(unseen))[0][0] == 0
            # ... and the reader goes on.
            await broker.requests.create(make_request("next"), max_waiting=10)
            following = reader.open("next", 0)
            assert await broker.requests.finish("next", 0, ABORT, API_ID)
            assert await collect(following) == [(0, ABORT)]

    asyncio.run(main())


def test_a_request_that_is_created_while_the_relay_looks_for_it_is_not_lost(open_test_broker: OpenTestBroker) -> None:
    """A check that found no record and then, in its second round trip, events: they show that there is one now."""

    async def main() -> None:
        async with open_test_broker(stream=QUICK) as broker:
            reader = RelayReader(broker, API_ID)
            subscription = reader.open("request", 0)
            real = reader._reader.states

            async def states(places: Any) -> Any:
                before = await real(places)
                _, taken = await begin(broker)
                await broker.requests.append([make_append(taken, 0)])
                return before

            with patch.object(reader._reader, "states", states):
                subscription.heard_s = 0.0
                await reader._fill()
            assert await subscription.take(0) == [TokenEvent(100)]
            assert not subscription.is_ended

    asyncio.run(main())


def test_what_cannot_be_read_ends_its_own_subscription_and_no_other(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker(stream=QUICK) as broker, reading(broker) as reader:
            broken, whole = reader.open("broken", 0), reader.open("whole", 0)
            _, taken = await begin(broker, "broken")
            _, other = await begin(broker, "whole")
            # Nothing of it comes by the relay: both have to be fetched, in one round trip.
            await broker.requests.append([make_append(other, 0, api_id=""), make_append(other, 1, STOP, api_id="")])
            await broker.redis.xadd(broker.keys.tokens("broken", 0), {"event": b"\x01nonsense"}, id="1-0")
            entries: list[dict[Any, Any]] = [
                {"events": b"nonsense"},
                {"events": encode(STOP), "more": "fields"},
                {"x": "y"},
            ]
            for fields in entries:
                await broker.redis.xadd(broker.keys.relay(API_ID), fields)
            assert [event.finish_reason for _, event in await collect(whole)] == [None, FinishReason.STOP]
            ((index, event),) = await collect(broken)
            assert (index, event.error_status, event.finish_reason) == (0, 500, FinishReason.ERROR)
            assert "cannot be read" in event.error
            assert taken.request.request_id == "broken"

    asyncio.run(main())


def test_steps_that_come_together_go_on_together(open_test_broker: OpenTestBroker) -> None:
    """One who is late with many steps writes once for each stream, not once for each token."""

    async def main() -> None:
        async with open_test_broker() as broker:
            reader = RelayReader(broker, API_ID)
            subscription = reader.open("request", 0)
            taken: list[list[TokenEvent]] = []
            came = asyncio.Event()

            def shortcut(events: list[TokenEvent]) -> float:
                taken.append(events)
                came.set()
                return 1000.0

            taking = asyncio.create_task(subscription.take(1000.0, shortcut))
            for index in range(3):
                entry = encode(RelayedEvents([RelayedEvent("request:0", index, TokenEvent(index))]))
                await broker.redis.xadd(broker.keys.relay(API_ID), {"events": entry})
            reading = asyncio.create_task(reader.run())
            await asyncio.wait_for(came.wait(), 10)
            assert [event.token_id for event in taken[0]] == [0, 1, 2]
            assert not taking.done()
            for task in (reading, taking):
                task.cancel()
            await asyncio.wait((reading, taking))
            reader.close(subscription)

    asyncio.run(asyncio.wait_for(main(), 20))
