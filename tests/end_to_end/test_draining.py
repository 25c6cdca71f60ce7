"""Workers that are asked to stop, with a scripted model: what they ran goes on elsewhere."""

import asyncio
import time
from typing import Any

import pytest

from decode_worker.batch import IDLE_WAIT_S
from messages.token_event import FinishReason
from tests.broker.samples import ABORT, make_request
from tests.scripted_cluster import Member, ScriptedCluster, expected_output, tokens_of
from tests.scripted_play import PROMPT, QUEUE, Gate, Play, scripted_play

play = scripted_play(QUEUE)


def test_a_drained_decode_worker_hands_its_sequences_on(play: Play) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        prefill, first = cluster.start_prefill(), cluster.start_decode()
        request_id = await cluster.send(PROMPT, 400)
        await cluster.until(lambda: first.runner.num_computed > 5, "it is being decoded")
        await first.stop()
        cluster.start_decode()
        assert tokens_of(await cluster.ended(request_id)) == expected_output(PROMPT, 400)
        await cluster.until_clean()
        await prefill.stop()

    play(scenario)


def start_unmeasured_prefill(cluster: ScriptedCluster) -> Member:
    """A prefill worker that says no rate: a scripted model prefills about as fast as others pull."""
    prefill = cluster.start_prefill()
    prefill.worker.note_work = lambda *_: None  # type: ignore[method-assign, union-attr]
    return prefill


async def running_on_one(cluster: ScriptedCluster, num_requests: int = 1) -> tuple[Member, Member, list[list[int]]]:
    """A prefill worker and a decode worker that has begun with requests of these prompts; `request-1` is the first."""
    prefill, first = start_unmeasured_prefill(cluster), cluster.start_decode()
    first.runner.before_step = lambda sequences: time.sleep(0.01)
    prompts = [list(range(1000, 1030 + 7 * number)) for number in range(num_requests)]
    for prompt in prompts:
        await cluster.send(prompt, 100)
    await cluster.until(
        lambda: len(first.worker.running) == num_requests and first.runner.num_computed > 10 * num_requests, "they run"
    )
    return prefill, first, prompts


async def start_taker(cluster: ScriptedCluster, busy_until: asyncio.Event | None = None) -> Member:
    """A decode worker that others know to be ready, and that does not come to take a job before."""
    taker = cluster.start_decode()
    take = taker.worker.intake.next_entries

    async def take_later(*given: Any) -> list[Any]:
        if busy_until is not None:
            await busy_until.wait()
        return await take(*given)

    taker.worker.intake.next_entries = take_later  # type: ignore[method-assign, assignment]
    while await cluster.broker.registry.find(taker.worker.board.worker_id) is None:
        cluster.check()
        await asyncio.sleep(0.01)
    return taker


async def ended_as_expected(cluster: ScriptedCluster, prompts: list[list[int]]) -> None:
    for number, prompt in enumerate(prompts, start=1):
        assert tokens_of(await cluster.ended(f"request-{number}")) == expected_output(prompt, 100)
    await cluster.until_clean()


def test_what_a_drained_worker_ran_goes_on_elsewhere_without_prefill(play: Play) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        prefill, first, prompts = await running_on_one(cluster, 5)
        taker = await start_taker(cluster)
        taker.runner.before_step = lambda sequences: time.sleep(0.01)
        num_prefilled = prefill.runner.num_computed
        await first.stop()
        assert taker.worker.batch.num_here == 5, "it goes as soon as all is pulled"  # type: ignore[union-attr]
        assert taker.receiver is not None and taker.receiver.counts["shared_memory"].pulls == 5
        assert first.worker.space.num_used == 0
        first.worker.space.check_integrity()
        await ended_as_expected(cluster, prompts)
        assert prefill.runner.num_computed == num_prefilled
        # What either computed is what there was to compute: each token but a sequence's first, once.
        assert first.runner.num_computed + taker.runner.num_computed == 5 * 99

    play(scenario)


@pytest.mark.parametrize("why", ["nobody is there", "prefill is faster"])
def test_a_drained_worker_sends_its_sequences_to_prefill_at_once(play: Play, why: str) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        prefill, first, prompts = await running_on_one(cluster, 2)
        num_prefilled, began = prefill.runner.num_computed, time.monotonic()
        if why == "prefill is faster":
            prefill.worker.board.tokens_per_s = 1e12
            prefill.heartbeat.wake()
            await start_taker(cluster)
        await first.stop()
        assert time.monotonic() - began < QUEUE.drain_s
        await cluster.until(lambda: prefill.runner.num_computed > num_prefilled, "they are prefilled again")
        if why == "nobody is there":
            cluster.start_decode()
        await ended_as_expected(cluster, prompts)

    play(scenario)


def test_what_nobody_takes_in_time_goes_to_prefill(play: Play) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        cluster.queue = QUEUE.model_copy(update={"drain_s": 0.3})
        prefill, first, prompts = await running_on_one(cluster, 2)
        await start_taker(cluster, busy_until=asyncio.Event())
        num_prefilled = prefill.runner.num_computed
        await first.stop()
        assert first.worker.space.num_used == 0
        await cluster.until(lambda: prefill.runner.num_computed > num_prefilled, "they are prefilled again")
        cluster.start_decode()
        await ended_as_expected(cluster, prompts)

    play(scenario)


def test_a_taker_that_dies_while_it_pulls_costs_a_prefill(play: Play) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        cluster.queue = QUEUE.model_copy(update={"drain_s": 0.5})
        prefill, first, prompts = await running_on_one(cluster)
        taker = await start_taker(cluster)
        gate = Gate()
        taker.receiver.pull = lambda *given: gate(given)  # type: ignore[method-assign, union-attr]
        stopped = asyncio.create_task(first.stop())
        await cluster.until(gate.reached.is_set, "it is pulling")
        taker.die()
        await stopped
        assert first.worker.space.num_used == 0
        num_prefilled = prefill.runner.num_computed
        cluster.start_decode()  # which reclaims the taker's job, and finds the offer gone
        await ended_as_expected(cluster, prompts)
        assert prefill.runner.num_computed > num_prefilled
        gate.opened.set()

    play(scenario)


@pytest.mark.parametrize("is_pool_left", [True, False])
def test_a_worker_that_is_killed_while_it_drains_loses_nothing(play: Play, is_pool_left: bool) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        _, first, prompts = await running_on_one(cluster, 2)
        await start_taker(cluster, busy_until=asyncio.Event())
        hand_over, handed_over = first.worker.intake.hand_over, list[str]()

        async def hold_the_second(claim: Any, *given: Any) -> bool:
            handed_over.append(claim.job.request_id)
            if len(handed_over) == 2:
                await asyncio.Event().wait()
            return await hand_over(claim, *given)

        first.worker.intake.hand_over = hold_the_second  # type: ignore[method-assign, assignment]
        first.worker.stopping.set()
        await cluster.until(lambda: len(handed_over) == 2, "one is handed over, the other is not")
        first.die()
        if not is_pool_left:
            first.close()
        cluster.start_decode()  # takes the one from the queue, and the other once its lease is over
        await ended_as_expected(cluster, prompts)

    play(scenario)


def test_a_job_that_came_with_the_last_read_goes_on_without_prefill(play: Play) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        is_pulled = asyncio.Event()
        prefill, first = start_unmeasured_prefill(cluster), cluster.start_decode()
        assert first.receiver is not None
        take, counts = first.worker.intake.next_entries, first.receiver.counts

        async def take_last(*given: Any) -> list[Any]:
            await first.worker.stopping.wait()
            return await take(*given)

        first.worker.intake.next_entries = take_last  # type: ignore[method-assign, assignment]
        request_id = await cluster.send(PROMPT, 20)
        await cluster.until(lambda: len(prefill.worker.offers) == 1, "the KV is offered")  # type: ignore[union-attr]
        taker = await start_taker(cluster, busy_until=is_pulled)
        stopped = asyncio.create_task(first.stop())
        await cluster.until(lambda: counts["shared_memory"].pulls == 1, "it is pulled")
        is_pulled.set()
        await stopped
        assert tokens_of(await cluster.ended(request_id)) == expected_output(PROMPT, 20)
        assert prefill.runner.num_computed == len(PROMPT)
        assert taker.runner.num_computed > 0
        await cluster.until_clean()

    play(scenario)


def test_a_cancel_of_what_a_drained_worker_offers_lets_it_go(play: Play) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        _, first, _ = await running_on_one(cluster)
        await start_taker(cluster, busy_until=asyncio.Event())
        began = time.monotonic()
        stopped = asyncio.create_task(first.stop())
        await cluster.until(lambda: len(first.worker.drain._offers) == 1, "it is offered")  # type: ignore[union-attr, arg-type]
        assert await cluster.broker.requests.cancel(make_request("request-1"), ABORT) == [0]
        await stopped
        assert time.monotonic() - began < QUEUE.drain_s
        assert first.worker.space.num_used == 0
        cluster.start_decode()  # which lets go of the job
        assert (await cluster.ended("request-1"))[-1].finish_reason == FinishReason.ABORT
        await cluster.until_clean()

    play(scenario)


@pytest.mark.parametrize("moment", ["pulling", "without room"])
def test_a_drained_decode_worker_leaves_no_job_to_its_lease(play: Play, moment: str) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        cluster.queue = QUEUE.model_copy(update={"lease_s": 600.0})
        cluster.start_prefill()
        first = cluster.start_decode(num_blocks=24 if moment == "without room" else 64)
        assert first.receiver is not None
        request_ids = []
        pull, gate = first.receiver.pull, Gate()
        if moment == "without room":  # the second comes while the first one has most of the blocks
            decoding = Gate()
            first.runner.before_step = lambda sequences: (
                decoding(sequences) if first.runner.num_computed == 10 else None
            )
            request_ids.append(await cluster.send(PROMPT * 8, 50))
            await cluster.until(decoding.reached.is_set, "the first one is decoded")
            request_ids.append(await cluster.send(PROMPT * 8, 50))
            await cluster.until(lambda: first.worker.admission.num_pulling == 1, "the second one waits for blocks")  # type: ignore[union-attr]
            decoding.opened.set()
        elif moment == "pulling":
            first.receiver.pull = lambda *given: (gate(given), pull(*given))[1]  # type: ignore[method-assign, func-returns-value]
            request_ids.append(await cluster.send(PROMPT, 50))
            await cluster.until(gate.reached.is_set, "it is pulling")
        stopped = asyncio.create_task(first.stop())
        await cluster.until(first.worker.stopping.is_set, "it is stopping")
        await asyncio.sleep(2 * IDLE_WAIT_S)  # in which one that did not wait for its pull would be gone
        gate.opened.set()
        await stopped
        cluster.start_decode()
        for request_id in request_ids:
            assert len(await cluster.ended(request_id)) == 50
        await cluster.until_clean()

    play(scenario)


def test_a_drained_prefill_worker_hands_its_jobs_back(play: Play) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        first = cluster.start_prefill(token_budget=16)
        gate = Gate()
        first.runner.before_step = lambda sequences: gate(sequences) if first.runner.num_computed == 16 else None
        request_id = await cluster.send(PROMPT, 10)
        await cluster.until(gate.reached.is_set, "its second chunk")
        stopped = asyncio.create_task(first.stop())
        await cluster.until(first.worker.stopping.is_set, "it is stopping")
        gate.opened.set()
        await stopped
        assert await cluster.broker.prefill_queue.depth() == 1
        cluster.start_prefill()
        cluster.start_decode()
        assert tokens_of(await cluster.ended(request_id)) == expected_output(PROMPT, 10)
        await cluster.until_clean()

    play(scenario)
