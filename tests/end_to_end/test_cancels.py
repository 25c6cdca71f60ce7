"""A request that is cancelled frees everything, in whichever phase it is: workers with a scripted model."""

import asyncio
import time
from collections.abc import AsyncGenerator

import pytest

from broker.choice import Taken
from messages.job import DecodeJob, Phase, PrefillJob
from messages.token_event import FinishReason, TokenEvent
from tests.broker.samples import ABORT, make_request
from tests.scripted_cluster import ScriptedCluster, expected_output, tokens_of
from tests.scripted_play import PROMPT, QUEUE, Gate, Play, scripted_play

play = scripted_play(QUEUE)


@pytest.mark.parametrize("phase", ["queued", "prefilling", "offered", "decoding"])
def test_a_cancel_frees_everything_in_every_phase(play: Play, phase: str) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        gate = Gate()
        if phase != "queued":
            prefill = cluster.start_prefill(token_budget=16)
            if phase == "prefilling":
                prefill.runner.before_step = gate
        if phase == "decoding":
            cluster.start_decode().runner.before_step = gate
        request_id = await cluster.send(PROMPT, 10)
        if phase in ("prefilling", "decoding"):
            await cluster.until(gate.reached.is_set, f"the request is {phase}")
        elif phase == "offered":
            await cluster.until(lambda: len(prefill.worker.offers) == 1, "the KV is offered")  # type: ignore[union-attr]
        assert await cluster.broker.requests.finish(request_id, 0, TokenEvent(finish_reason=FinishReason.ABORT))
        gate.opened.set()
        if phase == "queued":
            cluster.start_prefill()
        if phase != "decoding":
            cluster.start_decode()
        events = await cluster.ended(request_id)
        assert events[-1].finish_reason == FinishReason.ABORT
        await cluster.until_clean()
        assert await cluster.events(request_id) == events

    play(scenario)


@pytest.mark.parametrize("phase", ["prefilling", "offered", "pulling", "decoding"])
def test_a_cancel_stops_compute_within_a_step_and_frees_the_blocks(play: Play, phase: str) -> None:
    step_s = 0.05

    async def scenario(cluster: ScriptedCluster) -> None:
        pulling = Gate()
        members = [cluster.start_prefill(num_blocks=80, token_budget=16)]
        if phase in ("pulling", "decoding"):
            members.append(decode := cluster.start_decode(num_blocks=80))
            assert decode.receiver is not None
            real_pull = decode.receiver.pull

            def pull(*what: object) -> None:
                if phase == "pulling":
                    pulling(what)
                real_pull(*what)  # type: ignore[arg-type]

            decode.receiver.pull = pull  # type: ignore[method-assign, assignment]
        at_work = members[-1]
        if phase in ("prefilling", "decoding"):
            at_work.runner.before_step = lambda sequences: time.sleep(step_s)
        prompt = list(range(1000, 2000)) if phase == "prefilling" else PROMPT
        request_id = await cluster.send(prompt, 200)
        begun = {
            "prefilling": lambda: at_work.runner.num_computed >= 48,
            "offered": lambda: len(at_work.worker.offers) == 1,  # type: ignore[union-attr]
            "pulling": pulling.reached.is_set,
            "decoding": lambda: at_work.runner.num_computed >= 3,
        }[phase]
        await cluster.until(begun, f"the request is {phase}")
        computed = [member.runner.num_computed for member in members]
        assert await cluster.broker.requests.cancel(make_request(request_id), ABORT) == [0]
        cancelled_at = time.monotonic()
        if phase == "pulling":
            # What is being read elsewhere is free at once: the reader finds out by the generation.
            await cluster.until(lambda: members[0].worker.space.num_used == 0, "the owner's blocks are free", 0.5)
            pulling.opened.set()
        await cluster.until(lambda: not any(one.worker.space.num_used for one in members), "blocks are free", 0.5)
        took_s = time.monotonic() - cancelled_at
        await asyncio.sleep(2 * step_s)  # what would go on computing
        step = {"prefilling": 16, "decoding": 1}.get(phase, 0)
        for member, before in zip(members, computed, strict=True):
            # The step that ran already, and the one that began while the word was on its way.
            assert member.runner.num_computed <= before + 2 * step
        assert took_s < 2 * step_s + 0.1
        if phase == "offered":
            cluster.start_decode()  # which acknowledges the job
        await cluster.until_clean()

    play(scenario)


def cancel_as_it_is_taken(cluster: ScriptedCluster, request_id: str, kind: type[PrefillJob] | type[DecodeJob]) -> None:
    """The worker hears of it after the job was taken, and before it knows that it has it. To be called before the
    worker starts."""
    real_take = cluster.broker.requests.take
    listeners: list[asyncio.Queue[tuple[str, int]]] = []

    async def listen() -> AsyncGenerator[tuple[str, int], None]:
        words: asyncio.Queue[tuple[str, int]] = asyncio.Queue()
        listeners.append(words)
        while True:
            yield await words.get()
            words.task_done()

    async def take(job: PrefillJob | DecodeJob, phase: Phase) -> Taken | None:
        taken = await real_take(job, phase)
        if isinstance(job, kind) and job.request_id == request_id:
            await cluster.broker.requests.cancel(make_request(request_id), ABORT)
            for words in listeners:
                words.put_nowait((request_id, 0))
                await words.join()
            if kind is DecodeJob:  # the worker's loop comes round meanwhile
                runner = cluster.members[-1].runner
                before = runner.num_computed
                await cluster.until(lambda: runner.num_computed > before + 1, "two steps")
        return taken

    cluster.broker.requests.take = take  # type: ignore[method-assign]
    cluster.broker.cancels.listen = listen  # type: ignore[method-assign]


def test_a_cancel_that_overtakes_its_prefill_computes_nothing(play: Play) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        cancel_as_it_is_taken(cluster, "request-1", PrefillJob)
        prefill = cluster.start_prefill(token_budget=16)
        await cluster.ended(await cluster.send(list(range(1000, 1200)), 5))
        await cluster.until_clean()
        assert prefill.runner.num_computed == 0

    play(scenario)


def test_a_cancel_that_overtakes_its_decode_waits_for_no_room(play: Play) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        cancel_as_it_is_taken(cluster, "request-2", DecodeJob)
        cluster.start_prefill()
        decode = cluster.start_decode(num_blocks=16)
        decode.runner.before_step = lambda sequences: time.sleep(0.01)
        first = await cluster.send(PROMPT, 100)
        await cluster.until(lambda: decode.runner.num_computed > 0, "the first is being decoded")
        await cluster.ended(await cluster.send(list(range(1000, 1200)), 12))  # needs 13 blocks: there is no room
        while await cluster.broker.decode_queue.depth() > 1:  # until it is let go
            assert len(await cluster.events(first)) < 100
            await asyncio.sleep(0.01)
        assert tokens_of(await cluster.ended(first)) == expected_output(PROMPT, 100)
        await cluster.until_clean()

    play(scenario)
