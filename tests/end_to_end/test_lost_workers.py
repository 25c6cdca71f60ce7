"""Workers that die, sleep or hang, with a scripted model: others go on, and who wakes up writes nothing."""

import asyncio
from collections.abc import Callable

import pytest

from engine.sequence import Sequence
from messages.token_event import FinishReason
from observability.catalogue import FENCED
from tests.scripted_cluster import Member, ScriptedCluster, expected_output, tokens_of
from tests.scripted_play import PROMPT, QUEUE, Gate, Play, scripted_play

play = scripted_play(QUEUE)


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
