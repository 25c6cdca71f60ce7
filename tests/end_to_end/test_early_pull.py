"""KV is pulled while its job is taken: nothing of it stays where the job turns out to be nobody's."""

import asyncio

import pytest

from broker.choice import Taken
from messages.job import DecodeJob, Phase, PrefillJob
from tests.broker.samples import ABORT
from tests.scripted_cluster import ScriptedCluster, expected_output, tokens_of
from tests.scripted_play import PROMPT, QUEUE, Play, scripted_play

play = scripted_play(QUEUE)


class HeldTakes:
    """Lets no decode job be taken until opened."""

    def __init__(self, cluster: ScriptedCluster) -> None:
        take = cluster.broker.requests.take
        self.opened = asyncio.Event()

        async def hold(job: PrefillJob | DecodeJob, phase: Phase) -> Taken | None:
            if isinstance(job, DecodeJob):
                await self.opened.wait()
            return await take(job, phase)

        cluster.broker.requests.take = hold  # type: ignore[method-assign]


@pytest.mark.parametrize("is_ended", [True, False])
def test_what_was_pulled_before_its_job_was_taken_joins_or_is_given_back(play: Play, is_ended: bool) -> None:
    async def scenario(cluster: ScriptedCluster) -> None:
        cluster.start_prefill()
        takes = HeldTakes(cluster)
        decode = cluster.start_decode()
        assert decode.receiver is not None
        counts = decode.receiver.counts
        request_id = await cluster.send(PROMPT, 20)
        await cluster.until(lambda: counts["shared_memory"].pulls == 1, "it is pulled")
        assert len(await cluster.events(request_id)) == 1, "the first token, and nobody decodes yet"
        if is_ended:
            assert await cluster.broker.requests.finish(request_id, 0, ABORT)
        takes.opened.set()
        events = await cluster.ended(request_id)
        if is_ended:
            assert events[-1] == ABORT and decode.runner.num_computed == 0
        else:
            assert tokens_of(events) == expected_output(PROMPT, 20)
        assert counts["shared_memory"].pulls == 1, "once, and not again when it was taken"
        await cluster.until_clean()

    play(scenario)
