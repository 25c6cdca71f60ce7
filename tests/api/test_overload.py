"""Refused early, ended in time: what a client sees of full queues, deadlines and classes."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from api.gate import KNOWN_FOR_S
from messages.request import GenerationRequest, Priority
from messages.token_event import FinishReason, TokenEvent
from messages.worker_status import Role
from settings.loading import Settings
from tests.api.fake_cluster import FakeCluster, fake_cluster, run, status, until

PROMPT = "What is AI?"


async def fill(cluster: FakeCluster, num_jobs: int) -> list[asyncio.Task[object]]:
    """Requests of 7 prompt tokens that wait."""
    tasks: list[asyncio.Task[object]] = [
        asyncio.create_task(cluster.ask([5] * 7, max_new_tokens=16)) for _ in range(num_jobs)
    ]

    async def all_wait() -> bool:
        return await cluster.broker.prefill_queue.depth() == num_jobs

    await until(all_wait)
    return tasks


def test_a_predicted_wait_above_the_limit_is_refused_with_an_estimate(settings: Settings) -> None:
    queue = settings.queue.model_copy(update={"ttft_limit_s": 1.0, "max_waiting": 100})

    async def main() -> None:
        changed = settings.model_copy(update={"queue": queue})
        async with fake_cluster(changed, takes_jobs=False) as cluster:
            waiting = await fill(cluster, 6)  # 42 tokens, while nothing is known of the rate
            await cluster.beat(status(Role.PREFILL, tokens_per_s=10.0))
            # Until the rate is seen, and until what the last creation found is not taken for true any more.
            await asyncio.sleep(max(changed.api.token_load_max_age_s, KNOWN_FOR_S))
            for route in ("/generate", "/generate_stream"):
                answer = await cluster.ask([5] * 7, route)
                assert answer.status_code == 503
                after_s = int(answer.headers["retry-after"])
                assert 3 <= after_s <= 5  # 42 + 7 tokens at 10/s, less the 1 s
                assert answer.json() == {
                    "message": "Server is busy, please try again later (Status code: 503): the first token would not "
                    f"come within 1 s; try again in {after_s} s, or the server takes it with PDQ_QUEUE__TTFT_LIMIT_S="
                    f"{1 + after_s} or more prefill workers"
                }
            assert await cluster.broker.prefill_queue.depth() == 6
            # What is more urgent does not wait for these.
            body = {"inputs": [5] * 3, "parameters": {}}
            urgent = asyncio.create_task(cluster.post("/generate", body, headers={"X-Priority": "high"}))

            async def is_there() -> bool:
                return (await cluster.broker.prefill_queue.depths())[Priority.HIGH] == 1

            await until(is_there)
            for task in (*waiting, urgent):
                task.cancel()
            await asyncio.gather(*waiting, urgent, return_exceptions=True)

    run(main())


def test_while_it_is_known_to_be_full_nothing_is_tokenized(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = settings.queue.model_copy(update={"max_waiting": 2})

    async def main() -> None:
        async with fake_cluster(settings.model_copy(update={"queue": queue}), takes_jobs=False) as cluster:
            monkeypatch.setattr("api.gate.KNOWN_FOR_S", 60.0)
            waiting = await fill(cluster, 2)
            assert (await cluster.ask(PROMPT)).status_code == 503
            num_encoded = 0
            encode = cluster.services.tokenizer.encode

            async def counting(text: str, add_special_tokens: bool) -> list[int]:
                nonlocal num_encoded
                num_encoded += 1
                return await encode(text, add_special_tokens)

            monkeypatch.setattr(type(cluster.services.tokenizer), "encode", lambda self, *given: counting(*given))
            took_s = []
            for _ in range(20):
                began = time.perf_counter()
                answer = await cluster.ask(PROMPT)
                took_s.append(time.perf_counter() - began)
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert num_encoded == 0
            assert sorted(took_s)[10] < 0.05
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    run(main())


def test_a_flood_of_low_leaves_room(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings, takes_jobs=False) as cluster:  # max_waiting 8
            body = {"inputs": PROMPT, "parameters": {}}

            async def ask(priority: str) -> asyncio.Task[object]:
                depth = await cluster.broker.prefill_queue.depth()
                task: asyncio.Task[object] = asyncio.create_task(
                    cluster.post("/generate", body, headers={"X-Priority": priority})
                )

                async def is_decided() -> bool:
                    return task.done() or await cluster.broker.prefill_queue.depth() > depth

                await until(is_decided)
                return task

            tasks = [await ask(priority) for priority in ["low"] * 6 + ["normal"] * 6 + ["high"] * 2]
            assert await cluster.broker.prefill_queue.depths() == {
                Priority.HIGH: 0,
                Priority.NORMAL: 4,
                Priority.LOW: 4,
            }
            assert [task.done() for task in tasks] == [False] * 4 + [True] * 2 + [False] * 4 + [True] * 4
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    run(main())


def test_headers_reach_the_record(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings) as cluster:
            cluster.script = cluster.length_script("What")
            headers = {"X-Priority": "low", "X-Request-Timeout": "20"}
            answer = await cluster.post("/generate", {"inputs": PROMPT, "parameters": {}}, headers=headers)
            assert answer.status_code == 200
            (request,) = cluster.requests
            assert request.priority is Priority.LOW
            assert request.deadline_ms - request.created_ms == 20_000
            for name, given in (("X-Priority", "urgent"), ("X-Request-Timeout", "soon")):
                answer = await cluster.post("/generate", {"inputs": PROMPT, "parameters": {}}, headers={name: given})
                assert answer.status_code == 417
                assert answer.json()["message"].startswith(f"{name} must be ")
            assert len(cluster.requests) == 1

    run(main())


def test_the_api_ends_a_request_whose_time_is_over(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings) as cluster:
            first = cluster.events(cluster.ids("What"))[0]

            async def one_token(request: GenerationRequest, choice: int) -> AsyncIterator[TokenEvent]:
                yield TokenEvent(first.token_id, first.logprob)

            cluster.script = one_token
            told = "the request was not done within its 0.3 s (Status code: 504): ask for fewer tokens, or give it "
            told += "X-Request-Timeout: 0.6 (without one, PDQ_API__REQUEST_TIMEOUT_S holds)"
            body = {"inputs": PROMPT, "parameters": {}}
            headers = {"X-Request-Timeout": "0.3", "X-Request-Id": "whole"}
            began = time.monotonic()
            answer = await cluster.post("/generate", body, headers=headers)
            assert (answer.status_code, answer.json()) == (504, {"message": told})
            assert 0.3 <= time.monotonic() - began < 1.0
            event = await cluster.last_event("whole")
            assert event is not None
            assert (event.finish_reason, event.error_status, event.error) == (FinishReason.ERROR, 504, told)
            answer = await cluster.post("/generate_stream", body, headers=headers | {"X-Request-Id": "stream"})
            frames = [line for line in answer.text.split("\n\n") if line]
            assert answer.status_code == 200
            assert len(frames) == 2 and told in frames[1] and '"error"' in frames[1]
            assert await cluster.broker.request_reader.is_finished("stream", 0)
            assert await cluster.broker.request_reader.loads() == []

    run(main())
