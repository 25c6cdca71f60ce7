"""/health, /readiness, admission and streams when workers are missing, stuck or dying."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from api.health import lacking_roles, needed_roles
from messages.request import GenerationRequest
from messages.token_event import FinishReason, TokenEvent
from messages.worker_status import Role, WorkerState
from settings.loading import Settings
from tests.api.fake_cluster import FakeCluster, fake_cluster, run, settings_for, status, until


async def becomes(cluster: FakeCluster, code: int) -> None:
    async def is_so() -> bool:
        return (await cluster.client.get("/health")).status_code == code

    await until(is_so)


@pytest.mark.parametrize(
    ("changes", "is_lacking"),
    [
        ({}, False),
        ({"state": WorkerState.LOADING}, True),
        ({"state": WorkerState.DRAINING}, True),
        ({"idle_s": 2.4}, False),
        ({"idle_s": 2.5}, True),
    ],
)
@pytest.mark.parametrize("role", list(Role))
def test_a_worker_counts_while_it_makes_progress(role: Role, changes: dict[str, Any], is_lacking: bool) -> None:
    workers = [status(other, **(changes if other == role else {})) for other in Role]
    assert lacking_roles(workers, needed_roles(is_reward=False), 2.5) == ([role] if is_lacking else [])
    # A second worker makes up for it.
    assert lacking_roles([*workers, status(role)], needed_roles(is_reward=False), 2.5) == []


def test_health_needs_both_roles(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings, workers=False) as cluster:
            await becomes(cluster, 503)
            assert (await cluster.client.get("/health")).json() == {"message": "Error"}
            assert (await cluster.client.head("/health")).status_code == 503
            await cluster.beat(status(Role.PREFILL))
            await becomes(cluster, 503)
            answer = await cluster.client.get("/readiness")
            assert answer.status_code == 503
            assert answer.json() == {"status": "not ready", "detail": "no decode worker makes progress"}
            await cluster.beat(status(Role.DECODE))
            await becomes(cluster, 200)
            for verb, path in [("GET", "/health"), ("HEAD", "/health"), ("GET", "/healthz")]:
                answer = await cluster.client.request(verb, path)
                assert (answer.status_code, answer.content) == (200, b"" if verb == "HEAD" else b'{"message":"Ok"}')
            for verb in ("GET", "POST"):
                assert (await cluster.client.request(verb, "/readiness")).json() == {"status": "ok"}
                assert (await cluster.client.request(verb, "/liveness")).json() == {"status": "ok"}
                assert (await cluster.client.request(verb, "/get_model_name")).json() == {"model_name": "tiny"}
            await cluster.beat(status(Role.DECODE, idle_s=2.6))  # wedged: the heartbeat thread goes on
            await becomes(cluster, 503)
            await cluster.beat(status(Role.DECODE))
            await becomes(cluster, 200)
            await cluster.bury(Role.PREFILL)
            await becomes(cluster, 503)

    run(main())


def test_a_reward_model_needs_no_decode_worker(settings: Settings, reward_dir: Path) -> None:
    async def main() -> None:
        async with fake_cluster(settings_for(settings.redis, reward_dir), workers=False) as cluster:
            await cluster.beat(status(Role.PREFILL))
            await becomes(cluster, 200)
            load = {"current_load": 0.0, "logical_max_load": 0.0, "dynamic_max_load": 0.0}
            assert (await cluster.client.get("/token_load")).json() == load
            figures = (await cluster.client.get("/metrics")).text
            assert 'pdq_role_needed{role="prefill"} 1.0' in figures and 'pdq_role_needed{role="decode"} 0.0' in figures

            async def script(request: GenerationRequest, choice: int) -> AsyncIterator[TokenEvent]:
                yield TokenEvent(finish_reason=FinishReason.STOP, score=0.4892578125)

            cluster.script = script
            answer = await cluster.post("/get_score", {"chat": "hello", "parameters": {"frequency_penalty": -7}})
            num_tokens = len(cluster.ids("hello"))
            assert answer.json() == {"score": 0.4892578125, "prompt_tokens": num_tokens, "finish_reason": "stop"}
            (request,) = cluster.requests
            assert (request.kind, request.sampling.max_new_tokens) == ("score", 1)
            answer = await cluster.post("/get_score", {"chat": [5, 6]})
            assert answer.json()["prompt_tokens"] == 2

    run(main())


def test_no_worker_is_refused_at_once(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings, workers=False) as cluster:
            for route in ("/generate", "/generate_stream"):
                answer = await cluster.ask("hello", route)
                assert answer.status_code == 503
                assert answer.headers["retry-after"] == "1"
                message = answer.json()["message"]
                assert "no prefill worker is ready" in message and "`pdq prefill` starts one" in message
                assert f"PDQ_API__NO_WORKER_TIMEOUT_S ({settings.api.no_worker_timeout_s:g})" in message
            assert await cluster.broker.prefill_queue.depth() == 0

    run(main())


def test_a_request_waits_through_a_short_absence(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings) as cluster:
            cluster.script = cluster.length_script("What")
            await becomes(cluster, 200)
            await cluster.bury(Role.DECODE)
            await becomes(cluster, 503)
            assert (await cluster.ask("hello")).status_code == 200  # absent for less than a lease

    run(main())


def test_a_request_waits_for_a_worker_that_is_on_its_way(settings: Settings) -> None:
    queue = settings.queue.model_copy(update={"lease_s": 0.3})

    async def main() -> None:
        async with fake_cluster(settings.model_copy(update={"queue": queue})) as cluster:
            cluster.script = cluster.length_script("What")
            await becomes(cluster, 200)

            async def is_refused() -> bool:
                await cluster.beat(status(Role.PREFILL))
                return (await cluster.ask("hello")).status_code == 503

            await until(is_refused)  # both leases ran out, and nobody is there any more
            await cluster.beat(status(Role.DECODE, state=WorkerState.LOADING))

            async def is_accepted() -> bool:
                await cluster.beat(status(Role.PREFILL))
                return (await cluster.ask("hello")).status_code == 200

            await until(is_accepted, 0.3)

    run(main())


def test_a_worker_that_loads_for_the_first_time_is_not_waited_for(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings, workers=False) as cluster:
            for role in Role:
                await cluster.beat(status(role, state=WorkerState.LOADING))
            assert (await cluster.ask("hello")).status_code == 503

    run(main())


def test_a_stream_without_workers_ends_in_an_error(settings: Settings) -> None:
    api = settings.api.model_copy(update={"no_worker_timeout_s": 0.2})

    async def main() -> None:
        async with fake_cluster(settings.model_copy(update={"api": api})) as cluster:
            (word,) = cluster.ids("What")
            wait: dict[str, bool] = {}

            async def dies(request: GenerationRequest, choice: int) -> AsyncIterator[TokenEvent]:
                if "first" in wait:
                    yield TokenEvent(word, -1.0)
                await cluster.bury(Role.PREFILL, Role.DECODE)

            cluster.script = dies
            # Before the first token it is a status ...
            answer = await cluster.ask("hello", "/generate_stream")
            assert answer.status_code == 503
            assert "no live" in answer.json()["message"]
            event = await cluster.last_event(answer.headers["x-request-id"])
            assert event is not None
            assert (event.finish_reason, event.error_status) == (FinishReason.ERROR, 503)
            # ... after it the stream's last event.
            wait["first"] = True
            await cluster.beat(status(Role.PREFILL))
            await cluster.beat(status(Role.DECODE))
            await becomes(cluster, 200)
            answer = await cluster.ask("hello", "/generate_stream")
            assert answer.status_code == 200
            *_, first, last = answer.text.removesuffix("\n\n").split("\n\n")
            assert json.loads(first.removeprefix("data:"))["token"]["id"] == word
            error = json.loads(last.removeprefix("data:"))["error"]
            assert (error["type"], error["code"], error["param"]) == ("server_error", "stream_error", None)
            assert "no live" in error["message"]

    run(main())


def test_a_failed_sequence(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings) as cluster:
            (word,) = cluster.ids("What")
            error = TokenEvent(finish_reason=FinishReason.ERROR, error="3 workers failed", error_status=502)
            cluster.script = cluster.events_script([error])
            for route in ("/generate", "/generate_stream"):
                answer = await cluster.ask("hello", route)
                assert (answer.status_code, answer.json()) == (502, {"message": "3 workers failed"})
            cluster.script = cluster.events_script([TokenEvent(finish_reason=FinishReason.ERROR)])
            assert (await cluster.ask("hello")).status_code == 500
            cluster.script = cluster.events_script([TokenEvent(word, -1.0), error])
            assert (await cluster.ask("hello", "/generate")).status_code == 502
            answer = await cluster.ask("hello", "/generate_stream")
            assert answer.status_code == 200
            assert answer.text.endswith(
                'data:{"error":{"message":"3 workers failed","type":"server_error","param":null,'
                '"code":"stream_error"}}\n\n'
            )

    run(main())


def test_one_failed_choice_ends_the_others(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings) as cluster:
            (word,) = cluster.ids("What")

            async def script(request: GenerationRequest, choice: int) -> AsyncIterator[TokenEvent]:
                if choice == 1:
                    yield TokenEvent(finish_reason=FinishReason.ERROR, error="broken", error_status=500)
                while choice != 1:
                    yield TokenEvent(word, -1.0)

            cluster.script = script
            answer = await cluster.ask("hello", best_of=3)
            assert answer.json() == {"message": "broken"}
            for choice in (0, 2):
                event = await cluster.last_event(answer.headers["x-request-id"], choice)
                assert event == TokenEvent(finish_reason=FinishReason.ABORT)

    run(main())
