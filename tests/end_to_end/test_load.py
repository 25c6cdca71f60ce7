"""/token_load under load, against an oracle computed from the request records in Redis."""

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis.asyncio

from broker.keys import Keys
from messages import GenerationRequest, decode
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


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory, redis_url: str, demo_dir: Path) -> Iterator[Cluster]:
    """A decode worker with two slots, so that the others wait."""
    env = {"PDQ_DECODE__MAX_RUNNING": "2", "PDQ_KV__NUM_BLOCKS": str(NUM_BLOCKS)}
    with running_cluster(tmp_path_factory.mktemp("narrow"), redis_url, demo_dir, env) as running:
        yield running


def records(cluster: Cluster) -> list[Seen]:
    """Every unfinished sequence, from the records and token streams themselves."""

    async def read() -> list[Seen]:
        keys = Keys(cluster.prefix)
        client = redis.asyncio.Redis.from_url(cluster.redis_url)
        seen = []
        async for key in client.scan_iter(match=f"{cluster.prefix}:*record"):
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
        prompt = [1000 + number * 50 + place for place in range(20 + 10 * number)]
        for _ in narrow.stream(prompt, max_new_tokens=80 + number, ignore_eos=True):
            pass

    clients = [threading.Thread(target=client, args=(number,)) for number in range(NUM_STREAMS)]
    for thread in clients:
        thread.start()
    try:
        wait_until(
            lambda: (
                len(seen := records(narrow)) == NUM_STREAMS
                and sum(one.is_running for one in seen) == 2
                and all(one.output_tokens > 0 for one in seen)
            ),
            20,
            "two sequences decode and four wait with their first token out",
        )
        compared = 0
        while compared < 5:
            before = records(narrow)
            load = httpx.get(narrow.url + "/token_load").json()
            after = records(narrow)
            shape = [[(one.prompt_tokens, one.is_running) for one in seen] for seen in (before, after)]
            if sorted(shape[0]) != sorted(shape[1]):
                continue  # somebody finished in between: no bound holds
            low, high = oracle(before), oracle(after)
            # Two steps of two sequences: what may pass between the snapshot (at most 100 ms old) and `before`.
            slack = 2 * 12 / CAPACITY_TOKENS
            assert low[0] - slack <= load["current_load"] <= high[0]
            assert load["logical_max_load"] == pytest.approx(low[1])
            assert min(low[2], high[2]) - slack <= load["dynamic_max_load"] <= max(low[2], high[2]) + slack
            compared += 1
    finally:
        for thread in clients:
            thread.join(60)
    zero = {"current_load": 0.0, "logical_max_load": 0.0, "dynamic_max_load": 0.0}
    wait_until(lambda: httpx.get(narrow.url + "/token_load").json() == zero, 2, "zero again when idle")


def test_load_is_full_when_no_decode_worker_lives(narrow: Cluster) -> None:
    narrow.kill("decode-0")
    try:
        wait_until(
            lambda: all(value >= 1.0 for value in httpx.get(narrow.url + "/token_load").json().values()), 4, "full load"
        )
    finally:
        narrow.start("decode")
        narrow.wait_healthy()
