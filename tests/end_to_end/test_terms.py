"""Classes and deadlines inside the workers, with a scripted model and no API: each phase ends a late request."""

import asyncio
import time

import pytest

from engine.sequence import Sequence
from messages.request import Priority
from messages.token_event import FinishReason
from settings.broker import QueueSettings
from tests.scripted_cluster import ScriptedCluster, expected_output, tokens_of
from tests.scripted_play import PROMPT, Gate, Play, scripted_play

HIGH, NORMAL, LOW = Priority
QUEUE = QueueSettings(clock_tolerance_s=0, lease_s=5, drain_s=2)
play = scripted_play(QUEUE)


async def ends_late(cluster: ScriptedCluster, request_id: str, timeout_s: float) -> int:
    """That its last event, and no other, says so; how many tokens came before."""
    *tokens, last = await cluster.ended(request_id, deadline_s=5)
    assert (last.finish_reason, last.error_status, last.token_id) == (FinishReason.ERROR, 504, None)
    assert last.error.startswith(f"the request was not done within its {timeout_s:g} s (Status code: 504): ")
    return len(tokens)


def test_a_late_job_is_dropped_without_any_prefill(play: Play) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        late = await cluster.send(PROMPT, 10, timeout_s=-0.001)
        intime = await cluster.send(PROMPT[:20], 1, timeout_s=30)
        prefill = cluster.start_prefill()
        assert await ends_late(cluster, late, -0.001) == 0
        assert tokens_of(await cluster.ended(intime)) == expected_output(PROMPT[:20], 1)
        assert prefill.runner.num_computed == 20
        await cluster.until_clean()

    play(scenario)


def test_a_late_prompt_is_dropped_between_two_chunks(play: Play) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        prefill = cluster.start_prefill(token_budget=16)
        gate = Gate(lambda sequences: sequences[0].num_computed_tokens == 16)
        prefill.runner.before_step = gate
        request_id = await cluster.send(PROMPT, 10, timeout_s=0.2)
        await cluster.until(gate.reached.is_set, "its second chunk")
        await asyncio.sleep(0.25)  # its time
        gate.opened.set()
        assert await ends_late(cluster, request_id, 0.2) == 0
        assert prefill.runner.num_computed == 32
        await cluster.until_clean()

    play(scenario)


def test_a_late_offer_is_withdrawn_by_its_owner(play: Play) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        cluster.start_prefill()  # and no decode worker
        assert await ends_late(cluster, await cluster.send(PROMPT, 10, timeout_s=1.0), 1.0) == 1
        cluster.start_decode()  # takes the leftover
        await cluster.until_clean()

    play(scenario)


def test_a_late_offer_is_given_up(play: Play) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        prefill = cluster.start_prefill()
        request_id = await cluster.send(PROMPT, 10, timeout_s=0.2)
        await cluster.until(lambda: len(prefill.worker.offers) == 1, "its offer")  # type: ignore[union-attr]
        prefill.die()  # nobody but the decode worker can end it
        await asyncio.sleep(0.25)  # its time
        decode = cluster.start_decode()
        assert await ends_late(cluster, request_id, 0.2) == 1
        # Its pull may have begun before anybody knew; nothing came of it.
        await cluster.until(
            lambda: decode.worker.space.num_free == decode.worker.space.num_blocks, "its blocks are back"
        )
        assert decode.runner.num_computed == 0

    play(scenario)


def test_a_late_stream_ends_at_the_next_step(play: Play) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        cluster.start_prefill()
        decode = cluster.start_decode()
        decode.runner.before_step = lambda sequences: time.sleep(0.01)  # a step's time
        request_id = await cluster.send(PROMPT, 400, timeout_s=0.5)
        other = await cluster.send(PROMPT[:20], 60)
        num_tokens = await ends_late(cluster, request_id, 0.5)
        assert 2 <= num_tokens < 400
        events = await cluster.events(request_id)
        assert tokens_of(events) == expected_output(PROMPT, num_tokens)
        assert tokens_of(await cluster.ended(other)) == expected_output(PROMPT[:20], 60)
        await cluster.until_clean()

    play(scenario)


def test_a_saturated_prefill_worker_starts_the_most_urgent_first(play: Play) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        prefill = cluster.start_prefill(token_budget=16)
        gate = Gate()
        prefill.runner.before_step = gate
        started: list[int] = []
        first = await cluster.send(list(range(500, 516)), 1)
        await cluster.until(gate.reached.is_set, "the first step")
        sent = [(priority, number) for number, priority in enumerate([LOW, NORMAL, HIGH] * 4)]
        ids = [
            await cluster.send([2000 + 100 * number + place for place in range(16)], 1, priority=priority)
            for priority, number in sent
        ]

        def note(sequences: list[Sequence]) -> None:
            started.extend((sequence.token_ids[0] - 2000) // 100 for sequence in sequences)

        prefill.runner.before_step = note
        gate.opened.set()
        for request_id in (first, *ids):
            await cluster.ended(request_id)
        classes = [sent[number][0] for number in dict.fromkeys(started)]
        # In turns (queue.turn_every), else by class; within a class, who came first.
        assert classes.index(NORMAL) >= 3 and classes.index(LOW) >= 4
        assert sum(place for place, priority in enumerate(classes) if priority is HIGH) < 12
        for priority in Priority:
            numbers = [number for number in dict.fromkeys(started) if sent[number][0] is priority]
            assert numbers == sorted(numbers)
        await cluster.until_clean()

    play(scenario)


def test_a_long_low_prompt_keeps_nobody_urgent_waiting(play: Play) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        prefill = cluster.start_prefill(token_budget=16)
        gate = Gate(lambda sequences: sequences[0].num_computed_tokens == 32)
        prefill.runner.before_step = gate
        long = await cluster.send(list(range(3000, 3400)), 1, priority=LOW)
        await cluster.until(gate.reached.is_set, "its third chunk")
        urgent = await cluster.send(PROMPT[:16], 1, priority=HIGH)
        gate.opened.set()
        assert tokens_of(await cluster.ended(urgent)) == expected_output(PROMPT[:16], 1)
        assert prefill.runner.num_computed < 200
        assert tokens_of(await cluster.ended(long)) == expected_output(list(range(3000, 3400)), 1)
        await cluster.until_clean()

    play(scenario)


async def all_offered(cluster: ScriptedCluster, num_jobs: int) -> None:
    async with asyncio.timeout(5):
        while await cluster.broker.decode_queue.depth() < num_jobs:  # noqa: ASYNC110 - it happens in Redis
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("max_running", [1, 2])
def test_a_decode_worker_takes_the_most_urgent_next_and_preempts_the_least(play: Play, max_running: int) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        cluster.start_prefill()
        decode = cluster.start_decode(num_blocks=8, max_running=max_running)  # two of 6 blocks do not fit
        prompts = {priority: [priority.rank * 100 + place for place in range(30)] for priority in Priority}
        gate = Gate()
        decode.runner.before_step = gate
        ids = {}
        for number, priority in enumerate((LOW, NORMAL, HIGH), start=1):
            ids[priority] = await cluster.send(prompts[priority], 60, priority=priority)
            await all_offered(cluster, number)
            if priority is LOW:
                await cluster.until(gate.reached.is_set, "low is decoding")
        batches: list[tuple[Priority, ...]] = []

        def note(sequences: list[Sequence]) -> None:
            first_tokens = {one.token_ids[0] for one in sequences}
            batches.append(tuple(priority for priority in Priority if prompts[priority][0] in first_tokens))

        decode.runner.before_step = note
        gate.opened.set()
        for priority in Priority:
            assert tokens_of(await cluster.ended(ids[priority])) == expected_output(prompts[priority], 60)
        order = list(dict.fromkeys(batches))
        if max_running == 1:
            assert order == [(LOW,), (HIGH,), (NORMAL,)]
        else:  # normal was taken while there was a slot; as blocks run out low gives way, and then normal
            assert order[:2] == [(NORMAL, LOW), (NORMAL,)]
            assert order[-1] == (LOW,)
            assert (HIGH, LOW) not in order[:3]
        await cluster.until_clean()

    play(scenario)


def test_prefill_waits_for_decode_and_does_not_fail(play: Play) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        cluster.max_ahead = 2
        prefill = cluster.start_prefill(token_budget=16)
        prompts = [[number * 100 + place for place in range(16)] for number in range(12)]
        ids = [await cluster.send(prompt, 5) for prompt in prompts]
        await cluster.until(lambda: len(prefill.worker.offers) >= 2, "as much ahead as may be")  # type: ignore[union-attr]
        beats = prefill.worker.board.read().idle_s
        assert beats < 1  # it does not stand still either
        await asyncio.sleep(0.3)
        assert prefill.runner.num_computed <= 6 * 16  # a take of four on top, and no more
        assert prefill.worker.board.read().idle_s < 1
        cluster.start_decode()
        for request_id, prompt in zip(ids, prompts, strict=True):
            assert tokens_of(await cluster.ended(request_id)) == expected_output(prompt, 5)
        await cluster.until_clean()

    play(scenario)
