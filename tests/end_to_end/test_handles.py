"""Handles and blocks that are not what was offered, with a scripted model: nothing is decoded from them."""

import asyncio
from typing import Any

import msgspec

from kv_transfer.seal import Seal
from messages.job import DecodeJob
from messages.kv_transfer import KVHandle
from messages.request import Priority
from messages.token_event import FinishReason
from messages.wire import decode, encode
from tests.scripted_cluster import ScriptedCluster, expected_output, tokens_of
from tests.scripted_play import PROMPT, QUEUE, Play, scripted_play

play = scripted_play(QUEUE)


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
