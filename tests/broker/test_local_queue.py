"""Bids for prompts: who gets which job of the prefill queue, and that none is lost or done twice. Real Redis."""

import asyncio
from dataclasses import replace

import pytest
from msgspec import structs

from broker.bid import Bid
from broker.client import Broker
from broker.job_queue import QueueEntry
from messages import GenerationRequest, ImageRef, Phase, PrefillJob, Priority
from settings import QueueSettings
from tests.broker.samples import STOP, eventually, make_append, make_request, num_blocked
from tests.conftest import OpenTestBroker

SHORT = Bid(num_jobs=1, most_tokens=50, free_tokens=20.0, tokens_per_token_ahead=0.5)


async def put(broker: Broker, request_id: str, prompt_tokens: int, priority: Priority = Priority.NORMAL) -> None:
    request = make_request(request_id, prompt_tokens=prompt_tokens, priority=priority)
    await broker.requests.create(request, max_waiting=100)


async def stand(broker: Broker, bid: Bid, worker_id: str = "decode-1") -> None:
    """Leave a bid behind."""
    assert await broker.local_queue.seek(worker_id, bid, 1000) == []


def ids(entries: list[QueueEntry[PrefillJob]]) -> list[str]:
    return [entry.job.request_id for entry in entries]


async def waiting(broker: Broker) -> list[str]:
    """What a prefill worker gets."""
    return ids(await broker.prefill_queue.take("prefill-1", 100))


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """`stand` reads for a moment only; its bid stands for longer."""
    from broker.local_queue import LocalQueue

    wait = LocalQueue._wait

    async def wait_shortly(self: LocalQueue, worker_id: str, block_ms: int, classes: tuple[Priority, ...]) -> object:
        return await wait(self, worker_id, 1 if block_ms == 1000 else block_ms, classes)

    monkeypatch.setattr(LocalQueue, "_wait", wait_shortly)


def test_who_seeks_gets_the_first_that_waits_if_it_fits(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            await broker.prefill_queue.ensure()
            await put(broker, "short", 20)
            await put(broker, "next", 5)
            entries = await broker.local_queue.seek("decode-1", SHORT, 1)
            assert ids(entries) == ["short"] and entries[0].deliveries == 1
            assert await waiting(broker) == ["next"]
            assert await broker.local_queue.depth() == 1

    asyncio.run(main())


def test_what_does_not_fit_stays_where_it_is_and_nobody_behind_it_is_taken(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            await broker.prefill_queue.ensure()
            await put(broker, "long", 21)
            await put(broker, "short", 5)
            assert await broker.local_queue.seek("decode-1", SHORT, 1) == []
            assert await waiting(broker) == ["long", "short"]

    asyncio.run(main())


def test_prompts_under_way_with_prefill_workers_are_ahead(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            await put(broker, "under way", 40)
            assert await waiting(broker) == ["under way"]
            await put(broker, "first", 41)
            await put(broker, "second", 40)
            assert await broker.local_queue.seek("decode-1", SHORT, 1) == []  # 41 > 20 + 0.5 * 40
            assert ids(await broker.prefill_queue.take("prefill-1", 1)) == ["first"]
            assert ids(await broker.local_queue.seek("decode-1", SHORT, 1)) == ["second"]

    asyncio.run(main())


def test_published_tokens_count_as_prompt(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            await put(broker, "r", 20)
            (entry,) = await broker.prefill_queue.take("prefill-1", 1)
            taken = await broker.requests.take(entry.job, Phase.PREFILLING)
            assert taken is not None
            assert await broker.requests.append([make_append(taken, 0)]) == [True]
            again = PrefillJob("r", 0, 2, 0, 1)
            assert await broker.requests.hand_over(entry, taken.epoch, again, Phase.PREFILL_QUEUED)
            assert await broker.local_queue.seek("decode-1", SHORT, 1) == []
            wider = replace(SHORT, free_tokens=21.0)
            (found,) = await broker.local_queue.seek("decode-1", wider, 1)
            assert found.job == again

    asyncio.run(main())


def test_a_new_prompt_goes_to_who_waits_for_it_once(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            await broker.prefill_queue.ensure()
            await stand(broker, SHORT)
            await put(broker, "long", 21)
            await put(broker, "short", 20)
            await put(broker, "too late", 20)
            assert ids(await broker.local_queue.take("decode-1", 8)) == ["short"]
            assert await waiting(broker) == ["long", "too late"]

    asyncio.run(main())


def test_a_blocked_bidder_wakes(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            await broker.local_queue.ensure()
            seeking = asyncio.create_task(broker.local_queue.seek("decode-1", SHORT, 60_000))

            async def is_blocked() -> bool:
                return await num_blocked(broker) > 0

            await eventually(is_blocked)
            await put(broker, "short", 20, Priority.HIGH)
            (entry,) = await asyncio.wait_for(seeking, 5)
            assert entry.job.request_id == "short" and entry.priority is Priority.HIGH

    asyncio.run(main())


def test_a_bid_that_is_over_routes_nothing(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            await broker.prefill_queue.ensure()
            assert await broker.local_queue.seek("decode-1", SHORT, 1) == []

            async def is_over() -> bool:
                seconds, microseconds = await broker.redis.time()
                bids = await broker.redis.hgetall(broker.keys.bids())
                now_ms = seconds * 1000 + microseconds // 1000
                return all(int(text.split()[0]) < now_ms for text in bids.values())

            await eventually(is_over)
            await put(broker, "short", 5)
            assert await waiting(broker) == ["short"]
            assert await broker.redis.hgetall(broker.keys.bids()) == {}

    asyncio.run(main())


def test_as_many_prompts_as_were_bid_for(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            await broker.prefill_queue.ensure()
            await put(broker, "1", 5)
            assert ids(await broker.local_queue.seek("decode-1", replace(SHORT, num_jobs=3), 1000)) == ["1"]
            for number in ("2", "3", "4"):
                await put(broker, number, 5)
            assert ids(await broker.local_queue.take("decode-1", 8)) == ["2", "3"]
            assert await waiting(broker) == ["4"]

    asyncio.run(main())


def test_a_score_is_never_routed(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            await broker.prefill_queue.ensure()
            await stand(broker, SHORT)
            request = make_request("score", prompt_tokens=5)
            score = GenerationRequest("score", request.prompt_token_ids, request.sampling, kind="score")
            await broker.requests.create(score, max_waiting=100)
            assert await waiting(broker) == ["score"]

    asyncio.run(main())


def test_a_prompt_with_images_is_neither_routed_nor_sought(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            await broker.prefill_queue.ensure()
            await stand(broker, SHORT)
            request = structs.replace(make_request("images", prompt_tokens=5), images=(ImageRef(b"digest", 1, 3),))
            await broker.requests.create(request, max_waiting=100, images={b"digest": b"bytes"})
            assert await broker.local_queue.seek("decode-1", SHORT, 1) == []
            assert await waiting(broker) == ["images"]

    asyncio.run(main())


def test_what_is_done_locally_is_no_backlog_of_prefill(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            await broker.prefill_queue.ensure()
            await put(broker, "local", 20)
            (entry,) = await broker.local_queue.seek("decode-1", SHORT, 1)
            taken = await broker.requests.take(entry.job, Phase.DECODING)
            backlog = await broker.requests.create(make_request("other"), max_waiting=100)
            assert sum(backlog.prefill_jobs) == sum(backlog.prefill_tokens) == 0 and backlog.decoding == 1
            assert taken is not None
            assert await broker.requests.append([make_append(taken, 0, STOP)]) == [True]
            await broker.prefill_queue.ack([entry])  # whichever queue is asked
            assert await broker.local_queue.depth() == 0

    asyncio.run(main())


def test_what_a_dead_worker_had_is_anothers(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker(queue=QueueSettings(lease_s=0.05, heartbeat_s=0.01)) as broker:
            await broker.prefill_queue.ensure()
            await put(broker, "r", 5)
            assert ids(await broker.local_queue.seek("decode-1", SHORT, 1)) == ["r"]
            found: list[QueueEntry[PrefillJob]] = []

            async def is_reclaimed() -> bool:
                found.extend(await broker.local_queue.reclaim("decode-2", 1))
                return bool(found)

            await eventually(is_reclaimed)
            assert ids(found) == ["r"] and found[0].deliveries == 2

    asyncio.run(main())


@pytest.mark.parametrize("num_tokens", [1, 20, 21, 45, 46, 50, 51, 60, 61])
@pytest.mark.parametrize("ahead", [0, 50, 1000])
def test_redis_keeps_the_rule_of_the_bid(open_test_broker: OpenTestBroker, num_tokens: int, ahead: int) -> None:
    bid = replace(SHORT, look_tokens=60)

    async def main() -> None:
        async with open_test_broker() as broker:
            await broker.prefill_queue.ensure()
            if ahead:
                await put(broker, "ahead", ahead)
            await stand(broker, replace(bid, num_jobs=1, free_tokens=0.0, tokens_per_token_ahead=0.0, look_tokens=0))
            await broker.prefill_queue.take("prefill-1", 1)
            await stand(broker, bid)
            await put(broker, "r", num_tokens)
            assert (await broker.local_queue.depth() == 1) == bid.fits(num_tokens, ahead, is_new=True)

    asyncio.run(main())
