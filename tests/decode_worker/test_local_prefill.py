"""A decode worker prefills prompts itself: the same text, and every way it can end. Real Redis, real blocks."""

import asyncio
import threading
from dataclasses import replace

import pytest

from decode_worker import local_prefill
from decode_worker.worker import DecodeWorker
from engine.sequence import Sequence
from tests.broker.samples import ABORT
from tests.scripted_cluster import Member, ScriptedCluster, expected_output, tokens_of
from tests.scripted_play import PROMPT, QUEUE, Play, scripted_play

play = scripted_play(QUEUE)


async def until_bidding(cluster: ScriptedCluster, looks: bool = False) -> None:
    """A decode worker waits for a prompt; with `looks`, for long ones too."""
    give_up = asyncio.get_running_loop().time() + 5
    while not any(
        float(bid.split()[-1]) > 0 or not looks for bid in await cluster.broker.redis.hvals(cluster.broker.keys.bids())
    ):
        assert asyncio.get_running_loop().time() < give_up, "nobody bids"
        await asyncio.sleep(0.01)


def local(member: Member) -> DecodeWorker:
    assert isinstance(member.worker, DecodeWorker)
    return member.worker


def test_a_waiting_decode_worker_gets_the_prompt_and_no_transfer_is_made(play: Play) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        prefill, decode = cluster.start_prefill(), cluster.start_decode(local_prefill="always")
        await until_bidding(cluster)
        events = await cluster.ended(await cluster.send(PROMPT, 30))
        assert tokens_of(events) == expected_output(PROMPT, 30)
        assert (prefill.runner.num_computed, decode.runner.num_computed) == (0, 69)
        assert decode.receiver is not None
        assert all(count.pulls == 0 for count in decode.receiver.counts.values())
        await cluster.until_clean()

    play(scenario)


def test_its_phases_are_measured_like_anybodys(play: Play) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        decode = cluster.start_decode(local_prefill="always")
        await until_bidding(cluster)
        await cluster.ended(await cluster.send(PROMPT, 5))
        await cluster.until_clean()
        meters = local(decode).meters
        assert [meters.queues[name].count for name in ("local", "decode", "prefill")] == [1, 0, 0]
        assert [each.count for each in (meters.prefill, meters.decode, meters.pull)] == [1, 1, 0]
        assert (meters.batch.count, meters.batch.total) == (4, 4)
        assert meters.counts["pdq_prefix_queried_tokens"] == len(PROMPT)

    play(scenario)


def test_the_text_is_the_same_wherever_it_was_prefilled(play: Play) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        cluster.start_prefill()
        cluster.start_decode(local_prefill="always", max_running=2)
        await until_bidding(cluster)
        prompts = [[number * 100 + place for place in range(20 + 7 * number)] for number in range(8)]
        request_ids = [await cluster.send(prompt, 12) for prompt in prompts]  # more than the decode worker has room for
        for request_id, prompt in zip(request_ids, prompts, strict=True):
            assert tokens_of(await cluster.ended(request_id)) == expected_output(prompt, 12)
        await cluster.until_clean()

    play(scenario)


def test_never_leaves_every_prompt_to_the_prefill_workers(play: Play) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        prefill, decode = cluster.start_prefill(), cluster.start_decode(local_prefill="never")
        for number in range(4):
            await cluster.ended(await cluster.send([number, *PROMPT], 3))
        assert (prefill.runner.num_computed, decode.runner.num_computed) == (4 * 41, 4 * 2)
        assert not await cluster.broker.redis.exists(cluster.broker.keys.bids())

    play(scenario)


def test_a_prompt_that_the_policy_will_not_have_goes_to_the_prefill_workers(play: Play) -> None:
    """It bid for it, and by the time that it came something else had become true."""

    async def scenario(cluster: ScriptedCluster) -> None:
        prefill, decode = cluster.start_prefill(), cluster.start_decode(local_prefill="always")
        await until_bidding(cluster)
        local(decode).local.turn_off()
        assert tokens_of(await cluster.ended(await cluster.send(PROMPT, 5))) == expected_output(PROMPT, 5)
        assert (prefill.runner.num_computed, decode.runner.num_computed) == (40, 4)
        await cluster.until_clean()

    play(scenario)


def test_a_conversations_next_turn_is_computed_from_where_the_last_one_ended(play: Play) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        decode = cluster.start_decode(local_prefill="always")
        await until_bidding(cluster)
        answer = tokens_of(await cluster.ended(await cluster.send(PROMPT, 24)))
        assert decode.runner.num_computed == 63
        prompt = [*PROMPT, *answer, 1, 2, 3]  # 67 tokens, of which the first 48 lie here in full blocks
        await until_bidding(cluster)
        assert tokens_of(await cluster.ended(await cluster.send(prompt, 4))) == expected_output(prompt, 4)
        assert decode.runner.num_computed == 63 + (67 - 48) + 3
        await cluster.until_clean()

    play(scenario)


def test_auto_looks_at_a_long_prompt_and_keeps_it_if_most_of_it_is_here(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_prefill, "are_beside", lambda workers, host: False)  # as if on hosts of their own

    async def scenario(cluster: ScriptedCluster) -> None:
        prefill, decode = cluster.start_prefill(), cluster.start_decode(local_prefill="auto")
        worker = local(decode).local
        for num_tokens in (16, 64):
            worker.pace.note(num_tokens, num_tokens * 1e-6)
        worker.limits = replace(worker.limits, max_prefill_s=62e-6)  # 62 tokens are what may keep it busy
        worker.pace.note = lambda *_: None  # type: ignore[method-assign]
        told = list(range(2000, 2100))
        answer = tokens_of(await cluster.ended(await cluster.send(told, 20)))  # too long, by way of prefill
        assert prefill.runner.num_computed == 100
        before = decode.runner.num_computed
        await until_bidding(cluster, looks=True)
        prompt = [*told, *answer, 5]
        assert tokens_of(await cluster.ended(await cluster.send(prompt, 4))) == expected_output(prompt, 4)
        assert prefill.runner.num_computed == 100  # 112 of the 121 lay in the decode worker
        assert decode.runner.num_computed == before + 9 + 3
        other = list(range(3000, 3100))
        await until_bidding(cluster, looks=True)
        assert tokens_of(await cluster.ended(await cluster.send(other, 4))) == expected_output(other, 4)
        assert prefill.runner.num_computed == 200  # came for a look, and went on
        await cluster.until_clean()

    play(scenario)


@pytest.mark.parametrize("dies_at", ["the prompt", "the fifth token"])
def test_who_dies_of_it_is_replaced(play: Play, dies_at: str) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        first = cluster.start_decode(local_prefill="always")
        reached, gate = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()
        stop_at = 0 if dies_at == "the prompt" else 44

        def before_step(sequences: list[Sequence]) -> None:
            if first.runner.num_computed == stop_at:
                loop.call_soon_threadsafe(reached.set)
                assert gate.wait(20)

        first.runner.before_step = before_step
        await until_bidding(cluster)
        request_id = await cluster.send(PROMPT, 20)
        await asyncio.wait_for(reached.wait(), 5)
        first.die()
        prefill, second = cluster.start_prefill(), cluster.start_decode()
        events = await cluster.ended(request_id)
        gate.set()
        assert tokens_of(events) == expected_output(PROMPT, 20)
        assert prefill.runner.num_computed >= 40 and second.runner.num_computed > 0
        await cluster.until_clean()

    play(scenario)


def test_who_is_told_to_stop_hands_on_what_it_has(play: Play) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        prefill, first = cluster.start_prefill(), cluster.start_decode(local_prefill="always")
        reached, gate = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def before_step(sequences: list[Sequence]) -> None:
            loop.call_soon_threadsafe(reached.set)
            assert gate.wait(20)

        first.runner.before_step = before_step
        await until_bidding(cluster)
        request_id = await cluster.send(PROMPT, 10)
        await asyncio.wait_for(reached.wait(), 5)
        stopping = asyncio.create_task(first.stop())
        cluster.start_decode()
        gate.set()
        await stopping
        assert tokens_of(await cluster.ended(request_id)) == expected_output(PROMPT, 10)
        await cluster.until_clean()
        assert prefill.runner.num_computed == 0 or first.runner.num_computed <= 40 + 9

    play(scenario)


def test_a_cancelled_prompt_gives_its_blocks_back(play: Play) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        decode = cluster.start_decode(local_prefill="always")
        reached, gate = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def before_step(sequences: list[Sequence]) -> None:
            loop.call_soon_threadsafe(reached.set)
            assert gate.wait(20)

        decode.runner.before_step = before_step
        await until_bidding(cluster)
        request_id = await cluster.send(PROMPT, 10)
        await asyncio.wait_for(reached.wait(), 5)
        assert await cluster.broker.requests.finish(request_id, 0, ABORT)
        gate.set()
        await cluster.until_clean()
        assert decode.runner.num_computed <= 40

    play(scenario)


def test_running_streams_that_run_out_of_blocks_come_before_a_prompt(play: Play) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        cluster.start_prefill()
        cluster.start_decode(num_blocks=10, local_prefill="always")
        await until_bidding(cluster)
        prompts = [[number * 100 + place for place in range(30)] for number in range(4)]
        request_ids = [await cluster.send(prompt, 60) for prompt in prompts]
        for request_id, prompt in zip(request_ids, prompts, strict=True):
            assert tokens_of(await cluster.ended(request_id)) == expected_output(prompt, 60)
        await cluster.until_clean()

    play(scenario)
