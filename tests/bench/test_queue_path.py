"""The queue path's arithmetic, and that both halves see the same prompts."""

import asyncio

import pytest

from bench import lightllm_style
from bench.http_stream import resolve
from bench.load import Load
from bench.prompts import PromptSource
from bench.queue_path import QueuePathFailed, compare, measure_in_turn
from bench.workload import Concurrency, Group
from tests.bench.scripted_server import Script, Server, scripted_server

GROUP = Group("queue-path", Concurrency(1), prompt_tokens=40, output_tokens=3, num_requests=5)


def measure(script: Script) -> tuple[list[float], list[float], list[list[int]], Server]:
    """(TTFTs, prefill times, prompts that were prefilled, the server)."""
    prefilled: list[list[int]] = []

    def prefill(prompt: list[int]) -> float:
        prefilled.append(prompt)
        assert len(server_of[0].bodies) == len(prefilled)  # in turn
        return float(len(prefilled))

    server_of: list[Server] = []

    async def main() -> tuple[list[float], list[float]]:
        async with scripted_server(lambda index: script) as server:
            server_of.append(server)
            target = await resolve(server.url, lightllm_style.PATH)
            load = Load(target, lightllm_style, PromptSource(1), 10.0)
            return await measure_in_turn(load, GROUP, 2, prefill, lambda: None)

    ttfts_s, prefills_s = asyncio.run(main())
    return ttfts_s, prefills_s, prefilled, server_of[0]


def test_difference_is_p50_minus_p50() -> None:
    found = compare([0.050, 0.060, 0.100], [0.040, 0.020, 0.030])
    assert found.http_ttft_ms.p50 == pytest.approx(60)
    assert found.in_process_ms.p50 == pytest.approx(30)
    assert found.added_p50_ms == pytest.approx(30)
    assert found.paired_added_ms.p50 == pytest.approx(40)  # of 10, 40, 70


def test_halves_must_be_equally_long() -> None:
    with pytest.raises(ValueError):
        compare([0.1, 0.2], [0.1])


def test_both_ways_see_the_same_prompts_in_turn_and_warm_up_is_left_out() -> None:
    ttfts_s, prefills_s, prefilled, server = measure(Script())
    assert len(ttfts_s) == 5
    assert server.most_open == 1
    assert prefills_s == [3.0, 4.0, 5.0, 6.0, 7.0]
    assert prefilled == [body["inputs"] for body in server.bodies]
    assert len({tuple(prompt) for prompt in prefilled}) == 7


def test_a_failed_request_ends_it() -> None:
    with pytest.raises(QueuePathFailed, match="http_503"):
        measure(Script(status=503))
