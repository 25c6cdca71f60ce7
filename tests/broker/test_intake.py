"""How a worker comes by the jobs of a dead one."""

import asyncio
from typing import Any

from broker.intake import Intake
from messages.job import Phase
from settings.broker import QueueSettings, RedisSettings
from tests.broker.samples import eventually, make_request
from tests.broker.test_heartbeat import beating
from tests.conftest import OpenTestBroker

NUM_JOBS = 12
SETTINGS = QueueSettings(lease_s=0.5, heartbeat_s=0.02, max_deliveries=3)


def test_a_dead_workers_jobs_are_taken_over_without_a_pause_between_them(
    open_test_broker: OpenTestBroker, redis_settings: RedisSettings
) -> None:
    async def main() -> None:
        async with open_test_broker(queue=SETTINGS) as broker:
            await broker.requests.create(make_request(n=NUM_JOBS), max_waiting=NUM_JOBS)
            assert len(await broker.prefill_queue.take("dead", NUM_JOBS)) == NUM_JOBS
            with beating(redis_settings, settings=SETTINGS) as heartbeat:
                intake = Intake(broker, broker.prefill_queue, heartbeat, "w", Phase.PREFILLING, SETTINGS)
                choices: list[int] = []

                async def is_first_there() -> bool:
                    choices.extend(claim.job.choice for claim in await intake.next_claims(1, 0))
                    return bool(choices)

                await eventually(is_first_there)
                # From here on every call finds one: a dead worker's streams are not to wait for each other.
                for _ in range(NUM_JOBS - 1):
                    choices += [claim.job.choice for claim in await intake.next_claims(1, 0)]
                assert sorted(choices) == list(range(NUM_JOBS))

    asyncio.run(main())


def test_a_job_is_a_suspect_before_its_last_chance_and_then_the_last_that_is_taken(
    open_test_broker: OpenTestBroker, redis_settings: RedisSettings
) -> None:
    async def main() -> None:
        async with open_test_broker(queue=SETTINGS) as broker:
            await broker.requests.create(make_request(n=3), max_waiting=3)
            queue = broker.prefill_queue
            (often,) = await queue.take("dead", 1)
            await broker.redis.xclaim(
                broker.keys.prefill_queue(),
                "workers",
                "dead",
                0,
                [often.entry_id],
                retrycount=SETTINGS.max_deliveries - 1,
            )
            await queue.take("dead", 2)
            with beating(redis_settings, settings=SETTINGS) as heartbeat:
                intake = Intake(broker, queue, heartbeat, "w", Phase.PREFILLING, SETTINGS)
                taken: list[list[bool]] = []

                async def are_all_there() -> bool:
                    claims = await intake.next_claims(3, 0)
                    if claims:
                        taken.append([intake.is_suspect(claim) for claim in claims])
                        assert not any(intake.is_poison(claim) for claim in claims)
                    return sum(map(len, taken)) == 3

                await eventually(are_all_there)
                assert all(True not in suspects[:-1] for suspects in taken)
                assert sorted(suspect for suspects in taken for suspect in suspects) == [False, False, True]

    asyncio.run(main())


def test_a_record_that_cannot_be_read_ends_its_choice_and_nobody_else(
    open_test_broker: OpenTestBroker, redis_settings: RedisSettings
) -> None:
    """Raised, it would end this worker, and after the lease the next one."""

    async def main() -> None:
        async with open_test_broker(queue=SETTINGS) as broker:
            for request_id in ("record", "tokens", "whole"):
                await broker.requests.create(make_request(request_id), max_waiting=10)
            await broker.redis.hset(broker.keys.record("record"), "request", b"\x02another version")
            await broker.redis.xadd(broker.keys.tokens("tokens", 0), {"event": b"\x02another version"}, id="1-0")
            with beating(redis_settings, settings=SETTINGS) as heartbeat:
                intake = Intake(broker, broker.prefill_queue, heartbeat, "w", Phase.PREFILLING, SETTINGS)
                (claim,) = await intake.next_claims(4, 0)
                assert claim.job.request_id == "whole"
                left: Any = await broker.redis.xrange(broker.keys.prefill_queue())
                assert [entry_id for entry_id, _ in left] == [claim.entry.entry_id]
                assert heartbeat.held() == {(broker.keys.prefill_queue(), claim.entry.entry_id)}
            assert await broker.request_reader.is_finished("record", 0) and await broker.request_reader.is_finished(
                "tokens", 0
            )
            ((_, event),) = await broker.request_reader.read("record", 0)
            assert event.error_status == 500 and "are versions mixed?" in event.error

    asyncio.run(main())
