"""A request by its id: how far it is, its answer, its cancellation, and who may know of it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from messages.request import GenerationRequest, SamplingParams
from messages.token_event import FinishReason, TokenEvent
from settings.loading import Settings
from tests.api.fake_cluster import FakeCluster, fake_cluster, run, until
from tests.api.keys import KeyFile

PROMPT = "What is AI?"
TEXT = " AI refers to machines"


async def get(cluster: FakeCluster, request_id: str = "r") -> dict[str, Any]:
    answer = await cluster.client.get(f"/requests/{request_id}")
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def as_owner(cluster: FakeCluster, keys: KeyFile, owner: str) -> httpx.AsyncClient:
    """A client with the API key of `owner`."""
    transport = httpx.ASGITransport(cluster.app)
    return httpx.AsyncClient(transport=transport, base_url="http://test", timeout=20, headers=keys.bearer(owner))


@pytest.mark.parametrize(
    ("path", "parameters"),
    [
        ("/generate", {}),
        ("/generate", {"best_of": 3, "n": 3, "return_details": True}),
        ("/generate", {"stop_sequences": [" to"]}),
        ("/generate_stream", {}),
    ],
)
def test_the_result_is_the_answer_that_the_route_gave(
    settings: Settings, path: str, parameters: dict[str, Any]
) -> None:
    async def main() -> None:
        async with fake_cluster(settings) as cluster, fake_cluster(settings, takes_jobs=False) as other:
            cluster.script = cluster.length_script(TEXT)
            ask = {"inputs": PROMPT, "parameters": parameters}
            given = await cluster.post(path, ask, headers={"X-Request-Id": "r"})
            whole = given if path == "/generate" else await cluster.post("/generate", ask)
            body = await get(other)
            assert list(body) == [
                *("request_id", "route", "created_ms", "priority", "is_detached", "prompt_tokens"),
                *("is_finished", "choices", "result", "error"),
            ]
            assert body["result"] == whole.json()
            assert (body["request_id"], body["route"], body["is_finished"]) == ("r", path[1:], True)
            counts = [choice["count_output_tokens"] for choice in body["choices"]]
            result = body["result"]["count_output_tokens"]
            assert counts == (result if isinstance(result, list) else [result])
            assert {choice["phase"] for choice in body["choices"]} == {"finished"}

    run(main())


def test_a_running_request_says_how_far_each_choice_is(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings, takes_jobs=False) as cluster:
            opened = asyncio.Event()

            async def script(request: GenerationRequest, choice: int) -> AsyncIterator[TokenEvent]:
                first, second, last = cluster.events(cluster.ids("What is the"))
                yield last if choice == 2 else first
                if choice == 1:
                    yield second
                await opened.wait()
                yield last

            cluster.script = script
            ask = {"inputs": PROMPT, "parameters": {"best_of": 3, "n": 3}}
            asked = asyncio.create_task(cluster.post("/generate", ask, headers={"X-Request-Id": "r"}))

            async def is_known() -> bool:
                return (await cluster.client.get("/requests/r")).status_code == 200

            await until(is_known)
            waiting = {"phase": "prefill_queued", "count_output_tokens": 0, "finish_reason": None}
            assert (await get(cluster))["choices"] == [waiting] * 3
            cluster.start()

            async def is_half_way() -> bool:
                return [choice["count_output_tokens"] for choice in (await get(cluster))["choices"]] == [1, 2, 1]

            await until(is_half_way)
            body = await get(cluster)
            assert [choice["phase"] for choice in body["choices"]] == ["prefilling", "prefilling", "finished"]
            assert [choice["finish_reason"] for choice in body["choices"]] == [None, None, "length"]
            assert (body["is_finished"], body["result"], body["error"]) == (False, None, None)
            opened.set()
            assert (await asked).json() == (await get(cluster))["result"]

    run(main())


def test_a_failed_request_says_why(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings) as cluster:
            error = TokenEvent(finish_reason=FinishReason.ERROR, error="the pool burst", error_status=502)
            cluster.script = cluster.events_script([*cluster.events(cluster.ids("What is"))[:1], error])
            ask = {"inputs": PROMPT, "parameters": {}}
            given = await cluster.post("/generate", ask, headers={"X-Request-Id": "r"})
            body = await get(cluster)
            assert body["error"] == {"status": given.status_code} | given.json()
            assert body["result"] is None
            ended = {"phase": "finished", "count_output_tokens": 1, "finish_reason": "error"}
            assert body["choices"] == [ended]

    run(main())


def test_a_score(settings: Settings, reward_dir: Any) -> None:
    changed = settings.model_copy(update={"model": settings.model.model_copy(update={"path": str(reward_dir)})})

    async def main() -> None:
        async with fake_cluster(changed) as cluster:
            cluster.script = cluster.events_script([TokenEvent(finish_reason=FinishReason.STOP, score=0.25)])
            given = await cluster.post("/get_score", {"chat": "Hi", "parameters": {}}, headers={"X-Request-Id": "r"})
            assert given.status_code == 200
            assert (await get(cluster))["result"] == given.json()

    run(main())


def test_delete_cancels_once(settings: Settings) -> None:
    async def main() -> None:
        async with (
            fake_cluster(settings) as cluster,
            fake_cluster(settings, takes_jobs=False) as other,
            cluster.serving() as port,
        ):

            async def script(request: GenerationRequest, choice: int) -> AsyncIterator[TokenEvent]:
                first, last = cluster.events(cluster.ids("What is"))
                yield last if choice == 1 else first
                await asyncio.Event().wait()

            cluster.script = script
            ask = {"inputs": PROMPT, "parameters": {"best_of": 3, "n": 3}}
            async with httpx.AsyncClient() as client:
                url, headers = f"http://127.0.0.1:{port}/generate", {"X-Request-Id": "r"}
                asked = asyncio.create_task(client.post(url, json=ask, headers=headers))

                async def has_begun() -> bool:
                    answer = await other.client.get("/requests/r")
                    choices = answer.json().get("choices", [])
                    return [choice["count_output_tokens"] for choice in choices] == [1, 1, 1]

                await until(has_begun)
                answers = [await other.client.delete("/requests/r") for _ in range(2)]
                assert [answer.json() for answer in answers] == [
                    {"request_id": "r", "cancelled_choices": [0, 2]},
                    {"request_id": "r", "cancelled_choices": []},
                ]
                # Whoever waits for it hears of it at once.
                given = (await asyncio.wait_for(asked, 0.5)).json()
            assert given["finish_reason"] == ["abort", "length", "abort"]
            assert (await get(other))["result"] == given

    run(main())


def test_nothing_is_left_of_a_request_when_its_time_is_over(settings: Settings) -> None:
    settings = settings.model_copy(update={"stream": settings.stream.model_copy(update={"keep_s": 1})})

    async def main() -> None:
        async with fake_cluster(settings) as cluster:
            cluster.script = cluster.length_script(TEXT)
            ask = {"inputs": PROMPT, "parameters": {"best_of": 2, "n": 2}}
            await cluster.post("/generate", ask, headers={"X-Request-Id": "r"})
            assert (await get(cluster))["is_finished"]
            redis, prefix = cluster.broker.redis, cluster.broker.keys.prefix

            async def is_gone() -> bool:
                return await redis.keys(f"{prefix}:{{r}}:*") == []

            await until(is_gone, 3)
            assert await redis.exists(cluster.broker.keys.reader_leases(), cluster.broker.keys.active_sizes()) == 0
            assert (await cluster.client.get("/requests/r")).status_code == 404

    run(main())


def test_to_everybody_but_its_owner_a_request_is_unknown(settings: Settings, tmp_path: Path) -> None:
    keys = KeyFile(tmp_path)
    for owner in ("alice", "bob"):
        keys.add(owner)

    async def main() -> None:
        async with fake_cluster(keys.settings(settings)) as cluster:
            cluster.script = cluster.length_script(TEXT)
            alice, bob = as_owner(cluster, keys, "alice"), as_owner(cluster, keys, "bob")
            ask = {"inputs": PROMPT, "parameters": {}}
            headers = {"X-Request-Id": "r", "X-SSE-Ids": "true"}
            await alice.post("/generate_stream", json=ask, headers=headers)
            for method, path in (("GET", ""), ("GET", "/stream"), ("DELETE", "")):
                assert (await alice.request(method, f"/requests/r{path}")).status_code == 200
                answer = await bob.request(method, f"/requests/r{path}")
                unknown = await bob.request(method, f"/requests/x{path}")
                assert (answer.status_code, unknown.status_code) == (404, 404)
                assert answer.text == unknown.text.replace("'x'", "'r'")
            # The id again is another request, and the client learns by which id it can come back to that.
            again = await bob.post("/generate_stream", json=ask, headers=headers)
            assert again.status_code == 200 and again.headers["x-request-id"] != "r"
            assert (await bob.get(f"/requests/{again.headers['x-request-id']}/stream")).content == again.content
            await alice.aclose()
            await bob.aclose()

    run(main())


@pytest.mark.parametrize("given", ["ten", "-2", "1.5"])
def test_a_place_that_is_none_is_refused(settings: Settings, given: str) -> None:
    async def main() -> None:
        async with fake_cluster(settings, takes_jobs=False) as cluster:
            await cluster.broker.requests.create(GenerationRequest("r", [1], SamplingParams(seed=0)), 10)
            answer = await cluster.client.get("/requests/r/stream", params={"after": given})
            assert answer.status_code == 417
            assert repr(given) in answer.json()["message"]

    run(main())


def test_a_route_without_a_stream_and_headers_that_say_nothing_are_refused(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings) as cluster:
            cluster.script = cluster.length_script(TEXT)
            ask = {"inputs": PROMPT, "parameters": {}}
            await cluster.post("/generate", ask, headers={"X-Request-Id": "r"})
            answer = await cluster.client.get("/requests/r/stream")
            assert (answer.status_code, "/generate, which has no stream" in answer.text) == (417, True)
            for header in ("X-SSE-Ids", "X-Detached"):
                answer = await cluster.post("/generate_stream", ask, headers={header: "perhaps"})
                assert answer.status_code == 417
                assert answer.json() == {"message": f"{header} must be true or false, got 'perhaps'"}

    run(main())
