"""The tokens of a decode step are published while the next one is computed; who is refused meanwhile is dropped."""

import asyncio
from collections.abc import Sequence

from broker.choice import Append
from messages.token_event import FinishReason
from tests.broker.samples import ABORT
from tests.scripted_cluster import Member, ScriptedCluster, expected_output, tokens_of
from tests.scripted_play import PROMPT, QUEUE, Play, scripted_play

play = scripted_play(QUEUE)


class HeldAppends:
    """Lets no decode step be published, from the first one that has a token `from_index` on, until opened."""

    def __init__(self, cluster: ScriptedCluster, from_index: int) -> None:
        requests = cluster.broker.requests
        append = requests.append
        self.held, self.opened = asyncio.Event(), asyncio.Event()
        self.sizes: list[int] = []

        async def hold(items: Sequence[Append]) -> list[bool]:
            if items and items[0].index >= from_index:
                self.sizes.append(len(items))
                self.held.set()
                await self.opened.wait()
            return await append(items)

        requests.append = hold  # type: ignore[method-assign]


async def computed(cluster: ScriptedCluster, decode: Member, num_tokens: int) -> None:
    await cluster.until(lambda: decode.runner.num_computed >= num_tokens, "the step is computed")


def test_the_next_step_is_computed_while_one_is_published_and_no_more_than_that(play: Play) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        cluster.start_prefill()
        appends = HeldAppends(cluster, from_index=3)
        decode = cluster.start_decode()
        request_id = await cluster.send(PROMPT, 20)
        await asyncio.wait_for(appends.held.wait(), 10)
        await computed(cluster, decode, 4)  # tokens 1 to 3, and the one after the one that is held
        await cluster.until(lambda: not decode.worker.compute_thread._work_queue.qsize(), "the thread is idle")
        await asyncio.gather(*(cluster.broker.request_reader.loads() for _ in range(20)))  # it had the time for more
        assert decode.runner.num_computed == 4
        assert appends.sizes == [1], "one publish at a time"
        assert len(await cluster.events(request_id)) == 3
        appends.opened.set()
        assert tokens_of(await cluster.ended(request_id)) == expected_output(PROMPT, 20)
        await cluster.until_clean()

    play(scenario)


def test_who_is_refused_while_the_next_step_is_computed_is_dropped_with_its_token(play: Play) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        cluster.start_prefill()
        decode = cluster.start_decode()
        other_prompt = PROMPT[::-1]
        kept = await cluster.send(other_prompt, 40)
        await cluster.until(lambda: len(decode.worker.running) == 1, "it runs")
        ended = await cluster.send(PROMPT, 40)
        await cluster.until(lambda: len(decode.worker.running) == 2, "both run")
        appends = HeldAppends(cluster, from_index=0)
        await asyncio.wait_for(appends.held.wait(), 10)
        before = await cluster.events(ended)
        assert await cluster.broker.requests.finish(ended, 0, ABORT)
        appends.opened.set()
        events = await cluster.ended(ended)
        assert events == [*before, ABORT]
        assert tokens_of(await cluster.ended(kept)) == expected_output(other_prompt, 40)
        await cluster.until_clean()

    play(scenario)


def test_who_ends_is_not_in_the_next_step(play: Play) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        cluster.start_prefill()
        decode = cluster.start_decode()
        short, long = await cluster.send(PROMPT, 5), await cluster.send(PROMPT[::-1], 30)
        events = await cluster.ended(short)
        assert events[-1].finish_reason is FinishReason.LENGTH
        assert tokens_of(events) == expected_output(PROMPT, 5)
        await cluster.ended(long)
        assert decode.runner.num_computed == 4 + 29, "no token was computed in vain"
        await cluster.until_clean()

    play(scenario)
