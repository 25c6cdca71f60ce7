"""/token_load under load, against an oracle computed from the request records in Redis."""

import asyncio
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis.asyncio

from broker.keys import Keys
from messages.request import GenerationRequest
from messages.wire import decode
from tests.end_to_end.cluster import Cluster, running_cluster, wait_until

NUM_BLOCKS = 400
CAPACITY_TOKENS = NUM_BLOCKS * 16
NUM_STREAMS = 6  # of which two decode and four wait


@dataclass(frozen=True)
class Seen:
    prompt_tokens: int
    output_tokens: int
    max_new_tokens: int
    is_running: bool


@pytest.fixture
def narrow(tmp_path: Path, redis_url: str, tiny_dir: Path) -> Iterator[Cluster]:
    """A decode worker with two slots, so that the others wait. Its lease outlasts the time that it is stopped."""
    env = {"PDQ_DECODE__MAX_RUNNING": "2", "PDQ_KV__NUM_BLOCKS": str(NUM_BLOCKS), "PDQ_QUEUE__LEASE_S": "20"}
    with running_cluster(tmp_path, redis_url, tiny_dir, env) as running:
        yield running


def records(cluster: Cluster) -> list[Seen]:
    """Every unfinished sequence, from the records and token streams themselves."""

    async def read() -> list[Seen]:
        keys = Keys(cluster.prefix)
        client = redis.asyncio.Redis.from_url(cluster.redis_url)
        seen = []
        async for key in client.scan_iter(match=f"{keys.prefix}:*record"):
            blob: Any = await client.hget(key, "request")
            request = decode(blob, GenerationRequest)
            num_tokens = await client.xlen(keys.tokens(request.request_id, 0))
            phase = await client.hget(keys.active_phases(), f"{request.request_id}:0")
            if phase is not None:
                output = request.sampling.max_new_tokens
                seen.append(Seen(len(request.prompt_token_ids), num_tokens, output, phase == b"decoding"))
        await client.aclose()
        return seen

    return asyncio.run(read())


def oracle(seen: list[Seen]) -> tuple[float, float, float]:
    """(current, logical, dynamic): issue formulas, written out again without the code under test."""
    running = [one for one in seen if one.is_running]
    waiting = [one for one in seen if not one.is_running]
    held = sum(one.prompt_tokens + one.output_tokens - 1 for one in running)
    worst = sum(one.prompt_tokens + one.max_new_tokens for one in seen)
    rows = sorted(
        ((max(0, one.max_new_tokens - one.output_tokens - 1) + 6, one.prompt_tokens + one.output_tokens + 1))
        for one in running
    )[::-1]
    peak, sum_a = 0, 0
    for k, (b, a) in enumerate(rows, start=1):
        sum_a += a
        peak = max(peak, k * b + sum_a)
    expected = sum(one.prompt_tokens + one.max_new_tokens for one in waiting)  # ignore_eos: all of it
    return held / CAPACITY_TOKENS, worst / CAPACITY_TOKENS, (peak + expected) / CAPACITY_TOKENS


def test_load_equals_the_oracle_while_some_run_and_some_wait(narrow: Cluster) -> None:
    def client(number: int) -> None:
        prompt = [(number * 50 + place) % 250 for place in range(20 + 10 * number)]
        for _ in narrow.stream(prompt, max_new_tokens=700 + number, ignore_eos=True):
            pass

    clients = [threading.Thread(target=client, args=(number,)) for number in range(NUM_STREAMS)]
    for thread in clients:
        thread.start()
    try:
        for _ in range(3):
            wait_until(lambda: is_full(records(narrow)), 20, "two sequences decode, four wait with their first token")
            narrow.kill("decode-0", signal.SIGSTOP)  # the records stand still, and the oracle can be exact
            wait_until(lambda: len({str(records(narrow)) for _ in range(3)}) == 1, 5, "the records stand still")
            expected = [pytest.approx(value) for value in oracle(records(narrow))]
            time.sleep(0.2)  # what /token_load promises: never older
            assert load(narrow) == expected
            narrow.kill("decode-0", signal.SIGCONT)
    finally:
        narrow.kill("decode-0", signal.SIGCONT)
        for thread in clients:
            thread.join(60)
    wait_until(lambda: load(narrow) == [0.0, 0.0, 0.0], 2, "zero again when idle")


def load(cluster: Cluster) -> list[float]:
    """current, logical, dynamic."""
    body = httpx.get(cluster.url + "/token_load").json()
    return [body["current_load"], body["logical_max_load"], body["dynamic_max_load"]]


def is_full(seen: list[Seen]) -> bool:
    return (
        len(seen) == NUM_STREAMS
        and sum(one.is_running for one in seen) == 2
        and all(one.output_tokens > 0 for one in seen)
    )


def test_load_is_full_when_no_decode_worker_lives(cluster: Cluster) -> None:
    cluster.kill("decode-0", signal.SIGSTOP)
    try:
        wait_until(lambda: min(load(cluster)) >= 1.0, 4, "full load")
    finally:
        cluster.kill("decode-0", signal.SIGCONT)
        wait_until(lambda: load(cluster) == [0.0, 0.0, 0.0], 5, "no load when it is back")
