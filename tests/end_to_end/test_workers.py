"""Prefill and decode workers together, with a scripted model: every hand-over, every way it can go wrong."""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from broker.choice import Taken
from decode_worker.batch import IDLE_WAIT_S
from engine.sequence import Sequence
from errors import KVTransferFailed
from kv_transfer.seal import Seal
from messages.job import DecodeJob, Phase, PrefillJob
from messages.kv_transfer import KVHandle
from messages.request import Priority
from messages.token_event import FinishReason, TokenEvent
from messages.wire import decode, encode
from observability.catalogue import FENCED, PREEMPTED
from settings.broker import QueueSettings, RedisSettings
from tests.broker.samples import ABORT, make_request
from tests.conftest import OpenTestBroker
from tests.scripted_cluster import Member, ScriptedCluster, expected_output, scripted_cluster, tokens_of

QUEUE = QueueSettings(lease_s=0.4, heartbeat_s=0.1, drain_s=2.0)
PROMPT = list(range(1000, 1040))  # 2.5 blocks

Scenario = Callable[[ScriptedCluster], Awaitable[None]]
Play = Callable[[Scenario], None]


@pytest.fixture
def play(open_test_broker: OpenTestBroker, redis_settings: RedisSettings) -> Play:
    """Run a scenario on a fresh cluster without workers."""

    @asynccontextmanager
    async def cluster() -> AsyncIterator[ScriptedCluster]:
        async with open_test_broker(queue=QUEUE) as broker, scripted_cluster(broker, redis_settings, QUEUE) as running:
            yield running

    def run(scenario: Scenario) -> None:
        async def main() -> None:
            async with cluster() as running:
                await scenario(running)

        asyncio.run(main())

    return run


class Gate:
    """Stops a runner before a step, until opened."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self, sequences: object) -> None:
        self.reached.set()
        assert self.opened.wait(20)


def test_a_request_is_prefilled_handed_over_and_decoded(play: Play) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        prefill, decode = cluster.start_prefill(), cluster.start_decode()
        events = await cluster.ended(await cluster.send(PROMPT, 30))
        assert tokens_of(events) == expected_output(PROMPT, 30)
        assert events[-1].finish_reason == FinishReason.LENGTH
        assert (prefill.runner.num_computed, decode.runner.num_computed) == (40, 29)
        await cluster.until_clean()

    play(scenario)


def test_many_requests_share_a_prefix_and_several_workers(play: Play) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        for _ in range(2):
            cluster.start_prefill()
            cluster.start_decode(max_running=4)
        prompts = [PROMPT + [number] * (1 + 5 * number) for number in range(20)]
        request_ids = [await cluster.send(prompt, 5 + number) for number, prompt in enumerate(prompts)]
        for number, (request_id, prompt) in enumerate(zip(request_ids, prompts, strict=True)):
            assert tokens_of(await cluster.ended(request_id)) == expected_output(prompt, 5 + number)
        await cluster.until_clean()

    play(scenario)


def test_one_new_token_needs_no_decode_worker(play: Play) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        cluster.start_prefill()
        assert tokens_of(await cluster.ended(await cluster.send(PROMPT, 1))) == expected_output(PROMPT, 1)
        await cluster.until_clean()

    play(scenario)


def test_the_first_token_does_not_wait_for_the_transfer(play: Play) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        cluster.start_prefill()  # and no decode worker
        request_id = await cluster.send(PROMPT, 10)
        give_up = asyncio.get_running_loop().time() + 5
        while not (events := await cluster.events(request_id)):
            assert asyncio.get_running_loop().time() < give_up
            await asyncio.sleep(0.01)
        assert tokens_of(events) == expected_output(PROMPT, 1)

    play(scenario)


def test_choices_are_sequences_of_their_own(play: Play) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        cluster.start_prefill()
        cluster.start_decode()
        request_id = await cluster.send(PROMPT, 8, n=3)
        for choice in range(3):
            assert tokens_of(await cluster.ended(request_id, choice)) == expected_output(PROMPT, 8)
        await cluster.until_clean()

    play(scenario)


def test_a_reward_models_score_is_one_terminal_event(play: Play) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        cluster.start_prefill()
        (event,) = await cluster.ended(await cluster.send(PROMPT, 1, kind="score"))
        assert event == TokenEvent(finish_reason=FinishReason.STOP, score=40.0)
        await cluster.until_clean()

    play(scenario)


def test_preemption_recomputes_and_changes_nothing(play: Play) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        cluster.start_prefill()
        decode = cluster.start_decode(num_blocks=10)  # 4 sequences of up to 6 blocks
        prompts = [[number * 100 + place for place in range(30)] for number in range(4)]
        request_ids = [await cluster.send(prompt, 60) for prompt in prompts]
        for request_id, prompt in zip(request_ids, prompts, strict=True):
            assert tokens_of(await cluster.ended(request_id)) == expected_output(prompt, 60)
        assert decode.runner.num_computed < 4 * 59  # some were computed by prefill, after a preemption
        assert decode.worker.meters.counts[PREEMPTED.name] > 0
        await cluster.until_clean()

    play(scenario)


def test_a_failed_pull_sends_the_request_back_to_prefill(play: Play) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        cluster.start_prefill()
        decode = cluster.start_decode()
        assert decode.receiver is not None
        real_pull, failures = decode.receiver.pull, iter([1, 2])

        def pull(handle: KVHandle, *where: object) -> None:
            if next(failures, None):
                raise KVTransferFailed("injected")
            real_pull(handle, *where)  # type: ignore[arg-type]

        decode.receiver.pull = pull  # type: ignore[method-assign, assignment]
        events = await cluster.ended(await cluster.send(PROMPT, 12))
        assert tokens_of(events) == expected_output(PROMPT, 12)
        assert decode.runner.num_computed == 9  # two more tokens than usual came from prefill
        await cluster.until_clean()

    play(scenario)


def test_a_lost_release_leaks_no_block(play: Play) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        cluster.start_prefill()
        decode = cluster.start_decode()

        async def lose(job: object) -> None:
            pass

        decode.worker.admission.release = lose  # type: ignore[union-attr, method-assign]
        await cluster.ended(await cluster.send(PROMPT, 12))
        await cluster.until_clean()

    play(scenario)


def test_a_dead_decode_worker_is_replaced_in_the_middle(play: Play) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        cluster.start_prefill()
        first = cluster.start_decode()
        gate = Gate()
        first.runner.before_step = lambda sequences: gate(sequences) if first.runner.num_computed == 6 else None
        request_id = await cluster.send(PROMPT, 20)
        await cluster.until(gate.reached.is_set, "the first worker is in its seventh step")
        first.die()
        second = cluster.start_decode()
        assert tokens_of(await cluster.ended(request_id)) == expected_output(PROMPT, 20)
        assert second.runner.num_computed == 12  # 1 + 6 were published before, 1 came from prefill
        gate.opened.set()
        await cluster.until_clean()

    play(scenario)


def test_a_worker_that_wakes_up_late_is_fenced(play: Play) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        cluster.start_prefill()
        sleeper = cluster.start_decode()
        gate = Gate()
        sleeper.runner.before_step = lambda sequences: gate(sequences) if sleeper.runner.num_computed == 6 else None
        request_id = await cluster.send(PROMPT, 20)
        await cluster.until(gate.reached.is_set, "the sleeper is in its seventh step")
        sleeper.fall_asleep()
        cluster.start_decode()
        events = await cluster.ended(request_id)
        gate.opened.set()  # it wakes up, and tries to publish
        await cluster.until(lambda: not sleeper.worker.running, "the sleeper has dropped the sequence")
        assert sleeper.worker.meters.counts[FENCED.name] == 1
        assert tokens_of(events) == expected_output(PROMPT, 20)
        assert await cluster.events(request_id) == events
        await cluster.until_clean()

    play(scenario)


def test_a_dead_prefill_worker_is_replaced(play: Play) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        first = cluster.start_prefill(token_budget=16)
        gate = Gate()
        first.runner.before_step = lambda sequences: gate(sequences) if first.runner.num_computed == 32 else None
        request_id = await cluster.send(PROMPT, 10)
        await cluster.until(gate.reached.is_set, "the first worker is in its third chunk")
        first.die()
        cluster.start_prefill()
        cluster.start_decode()
        assert tokens_of(await cluster.ended(request_id)) == expected_output(PROMPT, 10)
        gate.opened.set()
        await cluster.until_clean()

    play(scenario)


def test_small_steps_tell_nothing_of_the_rate(play: Play) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        prefill = cluster.start_prefill(token_budget=64)
        cluster.start_decode()
        await cluster.ended(await cluster.send([5] * 10, 2))
        board = prefill.worker.board
        await cluster.until(lambda: board.prefilled_tokens == 10, "the step is noted")
        assert board.tokens_per_s == 0
        await cluster.ended(await cluster.send([5] * 40, 2))
        await cluster.until(lambda: board.tokens_per_s > 0, "the rate is known")

    play(scenario)


def test_an_offer_whose_owner_is_gone_is_recomputed(play: Play) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        first = cluster.start_prefill()
        request_id = await cluster.send(PROMPT, 10)
        await cluster.until(lambda: len(first.worker.offers) == 1, "the KV is offered")  # type: ignore[union-attr]
        first.close()
        cluster.start_prefill()
        cluster.start_decode()
        assert tokens_of(await cluster.ended(request_id)) == expected_output(PROMPT, 10)
        await cluster.until_clean()

    play(scenario)


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


def test_a_poisonous_request_ends_in_an_error_and_the_others_go_on(play: Play) -> None:
    class Poisoned(Exception):
        pass

    async def scenario(cluster: ScriptedCluster) -> None:
        def die_of_it(sequences: object) -> None:
            if any(sequence.token_ids[0] == 666 for sequence in sequences):  # type: ignore[attr-defined]
                raise Poisoned

        poison = await cluster.send([666] * 20, 5)
        for _ in range(QUEUE.max_deliveries):
            victim = cluster.start_prefill()
            victim.runner.before_step = die_of_it
            await asyncio.wait([victim.task], timeout=10)
            assert victim.task.done(), "the poison kills whoever computes it"
            cluster.members.remove(victim)
            victim.close()
        survivor = cluster.start_prefill()
        survivor.runner.before_step = die_of_it
        cluster.start_decode()
        events = await cluster.ended(poison)
        assert (events[-1].finish_reason, events[-1].error_status) == (FinishReason.ERROR, 500)
        assert f"{QUEUE.max_deliveries} workers failed" in events[-1].error
        assert tokens_of(await cluster.ended(await cluster.send(PROMPT, 10))) == expected_output(PROMPT, 10)
        await cluster.until_clean()

    play(scenario)


def test_tokens_that_a_failover_lost_are_computed_again(play: Play) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        cluster.start_prefill()
        decode = cluster.start_decode()
        gate = Gate()
        decode.runner.before_step = lambda sequences: gate(sequences) if decode.runner.num_computed == 8 else None
        request_id = await cluster.send(PROMPT, 20)
        await cluster.until(gate.reached.is_set, "nine tokens are published")
        # A replica that was behind has become the master: it never heard of the last three.
        stream = cluster.broker.keys.tokens(request_id, 0)
        assert await cluster.broker.redis.xdel(stream, *(f"{index + 1}-0" for index in (6, 7, 8))) == 3
        await cluster.broker.redis.execute_command("XSETID", stream, "6-0")  # type: ignore[no-untyped-call]
        gate.opened.set()
        assert tokens_of(await cluster.ended(request_id)) == expected_output(PROMPT, 20)
        await cluster.until_clean()

    play(scenario)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_poison_takes_no_innocent_along(play: Play, phase: str) -> None:
    class Poisoned(Exception):
        pass

    poison, innocents = [666] * 20, [[number] * (10 + number) for number in range(20)]

    def die_of_it(sequences: list[Sequence]) -> None:
        if any(sequence.token_ids[0] == 666 for sequence in sequences):
            raise Poisoned

    async def scenario(cluster: ScriptedCluster) -> None:
        starts: dict[str, Callable[[], Member]] = {"prefill": cluster.start_prefill, "decode": cluster.start_decode}
        start = starts[phase]
        (other,) = (each for name, each in starts.items() if name != phase)
        mortal, num_crashes = [], 0

        def start_mortal() -> None:
            mortal.append(start())
            mortal[-1].runner.before_step = die_of_it

        request_ids = [await cluster.send(prompt, 30) for prompt in innocents[:10]]
        poisoned = await cluster.send(poison, 30)
        request_ids += [await cluster.send(prompt, 30) for prompt in innocents[10:]]
        other()
        start_mortal()
        while not await cluster.broker.request_reader.is_finished(poisoned, 0):
            await asyncio.sleep(0.01)
            if mortal[-1].task.done():  # its supervisor starts it again
                num_crashes += 1
                cluster.members.remove(mortal[-1])
                mortal[-1].close()
                start_mortal()
            assert num_crashes <= QUEUE.max_deliveries
        events = await cluster.ended(poisoned)
        assert (events[-1].finish_reason, num_crashes) == (FinishReason.ERROR, QUEUE.max_deliveries)
        for request_id, prompt in zip(request_ids, innocents, strict=True):
            assert tokens_of(await cluster.ended(request_id)) == expected_output(prompt, 30)
        await cluster.until_clean()

    play(scenario)


def test_who_lost_its_leases_while_it_slept_drops_the_work_before_it_computes(play: Play) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        cluster.start_prefill()
        sleeper = cluster.start_decode()
        gate = Gate()
        sleeper.runner.before_step = lambda sequences: gate(sequences) if sleeper.runner.num_computed == 6 else None
        request_id = await cluster.send(PROMPT, 20)
        await cluster.until(gate.reached.is_set, "the sleeper is in its seventh step")
        beat = sleeper.heartbeat._beat
        sleeper.heartbeat._beat = lambda: False  # type: ignore[method-assign]
        cluster.start_decode()
        await cluster.ended(request_id)
        (one,) = sleeper.worker.running
        sleeper.heartbeat._beat = beat  # type: ignore[method-assign]
        sleeper.heartbeat.wake()
        await cluster.until(lambda: not sleeper.heartbeat.holds(one.claim.entry), "its beat was told")
        gate.opened.set()
        await cluster.until(lambda: not sleeper.worker.running, "the sleeper has dropped the sequence")
        assert sleeper.runner.num_computed == 7  # the step that it slept in, and no other
        await cluster.until_clean()

    play(scenario)


def test_a_loop_that_hangs_loses_its_leases_though_its_heart_beats(play: Play) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        stalls: list[str] = []
        loop = asyncio.get_running_loop()

        def end() -> None:  # as the process would
            stalls.append("hung")
            loop.call_soon_threadsafe(hung.die)

        cluster.queue = QUEUE.model_copy(update={"stall_s": 0.5})
        cluster.start_prefill()
        hung = cluster.start_decode(on_stall=end)
        gate = Gate()
        hung.runner.before_step = lambda sequences: gate(sequences) if hung.runner.num_computed == 6 else None
        request_id = await cluster.send(PROMPT, 20)
        await cluster.until(gate.reached.is_set, "it hangs in its seventh step")
        cluster.start_decode(on_stall=lambda: stalls.append("idle"))
        assert tokens_of(await cluster.ended(request_id)) == expected_output(PROMPT, 20)
        assert (stalls, hung.heartbeat.is_alive) == (["hung"], False)
        gate.opened.set()

    play(scenario)


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
    take = taker.worker.intake.next_claims

    async def take_later(*given: Any) -> list[Any]:
        if busy_until is not None:
            await busy_until.wait()
        return await take(*given)

    taker.worker.intake.next_claims = take_later  # type: ignore[method-assign, assignment]
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
        take, counts = first.worker.intake.next_claims, first.receiver.counts

        async def take_last(*given: Any) -> list[Any]:
            await first.worker.stopping.wait()
            return await take(*given)

        first.worker.intake.next_claims = take_last  # type: ignore[method-assign, assignment]
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
            request_ids.append(await cluster.send(PROMPT * 8, 50))
            await cluster.until(lambda: first.runner.num_computed > 0, "the first one is decoded")
            request_ids.append(await cluster.send(PROMPT * 8, 50))
            await cluster.until(lambda: first.worker.admission.num_pulling == 1, "the second one waits for blocks")  # type: ignore[union-attr]
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


def test_another_requests_handle_in_a_job_is_not_pulled(play: Play) -> None:
    """As somebody does it who can write to Redis: B's job is replaced by one with A's handle, sealed and on offer."""

    async def scenario(cluster: ScriptedCluster) -> None:
        cluster.start_prefill()
        prompts = PROMPT, [number + 500 for number in PROMPT]
        a, b = [await cluster.send(prompt, 12) for prompt in prompts]
        queue = cluster.broker.decode_queue
        key = queue._keys[Priority.NORMAL]
        while await queue.depth() < 2:
            cluster.check()
            await asyncio.sleep(0.01)
        rows: Any = await queue._redis.xrange(key)
        jobs = {decode(row[b"job"], DecodeJob).request_id: (decode(row[b"job"], DecodeJob), row) for _, row in rows}
        await queue._redis.xdel(key, *(entry_id for entry_id, _ in rows))
        forged = msgspec.structs.replace(jobs[b][0], kv_handle=jobs[a][0].kv_handle)
        await queue._redis.xadd(key, jobs[b][1] | {b"job": encode(forged)})
        await queue._redis.xadd(key, jobs[a][1])
        decode_worker = cluster.start_decode()
        for request_id, prompt in zip((a, b), prompts, strict=True):
            assert tokens_of(await cluster.ended(request_id)) == expected_output(prompt, 12)
        assert decode_worker.receiver is not None
        assert decode_worker.receiver.counts["shared_memory"].pulls == 2, "and A's offer was left to A"
        await cluster.until_clean()

    play(scenario)


def test_workers_of_another_secret_end_a_request_and_pull_nothing(play: Play) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        cluster.start_prefill()
        stranger = cluster.start_decode(seal=Seal(b"the secret of another cluster"))
        events = await cluster.ended(await cluster.send(PROMPT, 12))
        assert events[-1].finish_reason == FinishReason.ERROR
        assert stranger.receiver is not None and stranger.receiver.counts["shared_memory"].pulls == 0
        await cluster.until_clean()

    play(scenario)


def test_blocks_that_were_written_while_on_offer_are_computed_again(play: Play) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        prefill = cluster.start_prefill()
        decode_worker = cluster.start_decode()
        real_pull = decode_worker.receiver.pull  # type: ignore[union-attr]
        spoilt: list[KVHandle] = []

        def pull(handle: KVHandle, *where: object) -> None:
            if not spoilt:
                spoilt.append(handle)
                prefill.runner.keys[handle.block_ids[1]] += 1
                try:
                    real_pull(handle, *where)  # type: ignore[arg-type]
                finally:
                    prefill.runner.keys[handle.block_ids[1]] -= 1
            real_pull(handle, *where)  # type: ignore[arg-type]

        decode_worker.receiver.pull = pull  # type: ignore[method-assign, union-attr]
        events = await cluster.ended(await cluster.send(PROMPT, 12))
        assert tokens_of(events) == expected_output(PROMPT, 12)
        assert decode_worker.runner.num_computed == 10  # one more token than usual came from prefill
        await cluster.until_clean()

    play(scenario)
