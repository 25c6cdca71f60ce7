"""One reader's events: in order, each once, and a patience that costs no timer per event."""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any
from unittest.mock import patch

import pytest

from broker.subscription import Subscription
from messages.token_event import FinishReason, TokenEvent

LAST = TokenEvent(9, finish_reason=FinishReason.STOP)


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 20))


def deliver(subscription: Subscription, *indexes: int) -> None:
    for index in indexes:
        subscription.deliver(index, TokenEvent(index), 0.0)


def ids(events: list[TokenEvent]) -> list[int | None]:
    return [event.token_id for event in events]


def test_what_has_come_is_taken_in_one_go_in_order_and_once() -> None:
    async def main() -> None:
        subscription = Subscription("request", 0, after=2)
        deliver(subscription, 0, 2, 3, 3, 5, 6)
        assert subscription.is_behind and subscription.num_ready == 1
        assert ids(await subscription.take(1)) == [3]
        deliver(subscription, 5, 4, 4, 3, 7)
        assert not subscription.is_behind
        assert ids(await subscription.take(1)) == [4, 5, 6, 7]
        subscription.deliver(9, LAST, 0.0)
        deliver(subscription, 8, 10)
        assert subscription.is_ended and not subscription.is_behind
        assert ids(await subscription.take(1)) == [8, 9]

    run(main())


def test_who_waits_is_woken_and_who_is_cancelled_loses_nothing() -> None:
    async def main() -> None:
        subscription = Subscription("request", 0, after=-1)
        taking = asyncio.create_task(subscription.take())
        await asyncio.sleep(0)
        taking.cancel()
        await asyncio.wait([taking])
        taking = asyncio.create_task(subscription.take())
        await asyncio.sleep(0)
        deliver(subscription, 0, 1)
        assert ids(await taking) == [0, 1]
        taking = asyncio.create_task(subscription.take())
        await asyncio.sleep(0)
        deliver(subscription, 2)
        taking.cancel()  # woken and cancelled in one turn
        await asyncio.wait([taking])
        assert ids(await subscription.take(1)) == [2]

    run(main())


def test_patience_ends_when_it_said_whatever_it_was_before() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        subscription = Subscription("request", 0, after=-1)
        for index, patience_s in enumerate((1000.0, 0.02)):  # a shorter one after a longer one
            taking = asyncio.create_task(subscription.take(patience_s))
            await asyncio.sleep(0)
            if not index:
                deliver(subscription, 0)
                await taking
        with pytest.raises(TimeoutError):
            await taking
        # A longer one after a shorter one, whose timer goes off while it waits.
        taking = asyncio.create_task(subscription.take(0.02))
        await asyncio.sleep(0)
        deliver(subscription, 1)
        await taking
        began = loop.time()
        with pytest.raises(TimeoutError):
            await subscription.take(0.06)
        assert loop.time() - began >= 0.059
        deliver(subscription, 2)
        assert ids(await subscription.take(0.02)) == [2]
        subscription.close()
        subscription.close()

    run(main())


def test_a_timer_is_set_once_for_many_events() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        subscription = Subscription("request", 0, after=-1)
        with patch.object(loop, "call_at", wraps=loop.call_at) as call_at:
            for index in range(50):
                loop.call_soon(deliver, subscription, index)
                assert ids(await subscription.take(1000)) == [index]
            assert call_at.call_count == 1
            waiting = asyncio.create_task(subscription.take(None))  # for ever, and still the old timer is no end
            await asyncio.sleep(0)
            assert not waiting.done()
            waiting.cancel()
        subscription.close()

    run(main())


def test_a_shortcut_takes_what_comes_and_who_waits_sleeps_on() -> None:
    async def main() -> None:
        subscription = Subscription("request", 0, after=-1)
        taken: list[list[TokenEvent]] = []

        def shortcut(events: list[TokenEvent]) -> float | None:
            if len(taken) == 2:
                return None
            taken.append(events)
            return 1000.0

        deliver(subscription, 0)
        assert ids(await subscription.take(1, shortcut)) == [0], "what was there already is no matter of the shortcut"
        taking = asyncio.create_task(subscription.take(1, shortcut))
        await asyncio.sleep(0)
        for index in (1, 2):  # accepted together, hence taken together
            subscription.accept(index, TokenEvent(index), 0.0)
        subscription.wake()
        subscription.wake()  # there is nothing more
        deliver(subscription, 4, 3)
        assert [ids(events) for events in taken] == [[1, 2], [3, 4]]
        await asyncio.sleep(0)
        assert not taking.done()
        deliver(subscription, 5, 6)
        assert ids(await taking) == [5, 6]
        deliver(subscription, 7)
        assert ids(await subscription.take(1)) == [7]
        subscription.close()

    run(main())


def test_patience_begins_anew_with_what_a_shortcut_takes() -> None:
    async def main() -> None:
        subscription = Subscription("request", 0, after=-1)
        for index, (first_s, then_s) in enumerate(((0.03, 0.1), (1000.0, 0.1))):  # a longer one, and a shorter one
            taking = asyncio.create_task(subscription.take(first_s, lambda events, s=then_s: s))  # type: ignore[misc]
            await asyncio.sleep(0)
            came_s = time.monotonic()
            subscription.deliver(index, TokenEvent(index), came_s)
            with pytest.raises(TimeoutError):
                await taking
            assert time.monotonic() - came_s >= 0.098
        subscription.close()

    run(main())


def test_what_a_shortcut_raises_is_raised_to_who_waits() -> None:
    async def main() -> None:
        subscription = Subscription("request", 0, after=-1)

        def shortcut(events: list[TokenEvent]) -> float | None:
            raise ValueError("broken")

        taking = asyncio.create_task(subscription.take(1, shortcut))
        await asyncio.sleep(0)
        deliver(subscription, 0)
        with pytest.raises(ValueError, match="broken"):
            await taking
        subscription.close()

    run(main())
