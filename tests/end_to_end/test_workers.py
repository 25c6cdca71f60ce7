"""Prefill and decode workers together, with a scripted model: every hand-over, and blocks that run out or get lost."""

import asyncio

from errors import KVTransferFailed
from messages.kv_transfer import KVHandle
from messages.token_event import FinishReason, TokenEvent
from observability.catalogue import PREEMPTED
from tests.scripted_cluster import ScriptedCluster, expected_output, tokens_of
from tests.scripted_play import PROMPT, QUEUE, Play, scripted_play

play = scripted_play(QUEUE)


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
