"""What is refused, with which status and words, and that all of it comes before a stream's headers."""

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from messages import Role, WorkerState
from settings import Settings
from tests.api.fake_cluster import CAPACITY_TOKENS, fake_cluster, run, settings_for, status, until

ROUTES = ["/generate", "/generate_stream", "/"]
PROMPT = "What is AI?"


REFUSALS: list[tuple[Any, str]] = [
    ({"parameters": {}}, "'inputs'"),
    ({"inputs": PROMPT}, "'parameters'"),
    ({"inputs": PROMPT, "parameters": None}, "parameters must be an object, got NoneType"),
    ({"inputs": PROMPT, "parameters": [1]}, "parameters must be an object, got list"),
    ([1], "request body must be a JSON object, got list"),
    ({"inputs": None, "parameters": {}}, "'NoneType' object is not iterable"),
    ({"inputs": 5, "parameters": {}}, "'int' object is not iterable"),
    ({"inputs": [], "parameters": {}}, "prompt_ids is empty"),
    ({"inputs": "", "parameters": {}}, "prompt_ids is empty"),
    ({"inputs": ["a", "b"], "parameters": {}}, "prompt format error, get type<class 'list'>"),
    ({"inputs": [1, True], "parameters": {}}, "prompt format error, get type<class 'list'>"),
    ({"inputs": {"a": 1}, "parameters": {}}, "prompt format error, get type<class 'dict'>"),
    ({"inputs": [1, 620], "parameters": {}}, "prompt List[int] format contain id > vocab_size"),
    ({"inputs": [-1], "parameters": {}}, "prompt List[int] format contain id < 0"),
    ({"inputs": PROMPT, "parameters": {"top_k": 1.5}}, "'float' object cannot be interpreted as an integer"),
    ({"inputs": PROMPT, "parameters": {"max_new_tokens": 0}}, "max_new_tokens must be at least 1, got 0."),
    (
        {"inputs": [5] * 7, "parameters": {"max_new_tokens": CAPACITY_TOKENS}},
        f"the input prompt token len 7 + max_new_tokens {CAPACITY_TOKENS} > {CAPACITY_TOKENS}",
    ),
    (
        {"inputs": PROMPT, "parameters": {}, "multimodal_params": {"images": [{"type": "url", "data": "x"}]}},
        "multimodal_params images[0]: images are not supported by this model, which reads text alone",
    ),
    (
        {"inputs": PROMPT, "parameters": {}, "multimodal_params": {"videos": []}},
        "MultimodalParams.__init__() got an unexpected keyword argument 'videos'",
    ),
    (
        {"inputs": PROMPT, "parameters": {"guided_json": '{"type": "word"}'}},
        "json_schema can not be followed: Invalid type: word",
    ),
]


def test_client_errors_are_417_with_the_message(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings) as cluster:
            for body, message in REFUSALS:
                for route in ROUTES:
                    answer = await cluster.post(route, body)
                    assert (answer.status_code, answer.json()) == (417, {"message": message})
                    assert answer.headers["content-type"] == "application/json"
                if isinstance(body, dict):
                    answer = await cluster.post("/", body | {"stream": True})
                    assert (answer.status_code, answer.json()) == (417, {"message": message})
            assert cluster.requests == []

    run(main())


def test_malformed_json_is_a_417_everywhere(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings) as cluster:
            for content in (b"", b"{", b'{"inputs": "\xff"}', b"nonsense"):
                for route in [*ROUTES, "/get_score"]:
                    answer = await cluster.client.post(route, content=content)
                    assert answer.status_code == 417
                    assert list(answer.json()) == ["message"]
                answer = await cluster.client.post("/tokens", content=content)
                assert answer.status_code == 417
                assert answer.json()["message"].startswith("error: ")
            answer = await cluster.post("/tokens", {"parameters": {}})
            assert answer.json() == {"message": "error: 'text'"}
            answer = await cluster.post("/tokens", {"text": "a", "parameters": {"top_k": "x"}})
            assert answer.json() == {"message": "error: 'str' object cannot be interpreted as an integer"}

    run(main())


def test_what_is_too_large_is_refused_without_looking_through_it(settings: Settings) -> None:
    deep = b"[" * 5000 + b"]" * 5000
    bodies = [
        (b'{"inputs": ' + deep + b', "parameters": {}}', "depth limit exceeded"),
        (b'{"inputs": "a", "parameters": {"guided_json": ' + deep + b"}}", "depth limit exceeded"),
        (b'{"inputs": "a", "parameters": {"temperature": NaN}}', "unexpected character"),
        (b'{"inputs": "a", "parameters": {"temperature": 1e999}}', "number is infinity"),
        (b'{"inputs": "\\ud800", "parameters": {}}', "surrogate"),
        (orjson.dumps({"inputs": [5] * (CAPACITY_TOKENS + 1), "parameters": {}}), "1001 ids has more than 1000 tokens"),
        (orjson.dumps({"inputs": ["x"] * (CAPACITY_TOKENS + 1), "parameters": {}}), "more than 1000 tokens"),
    ]

    async def main() -> None:
        async with fake_cluster(settings) as cluster:
            for content, said in bodies:
                for route in ROUTES:
                    answer = await cluster.client.post(route, content=content)
                    assert answer.status_code == 417 and said in answer.json()["message"], (said, answer.text)
            assert cluster.requests == []

    run(main())


def test_an_answer_does_not_echo_a_huge_value(settings: Settings) -> None:
    huge = "x" * 1_000_000

    async def main() -> None:
        async with fake_cluster(settings, takes_jobs=False) as cluster:
            for body in (
                {"inputs": PROMPT, "parameters": {"logit_bias": {huge: 1}}},
                {"inputs": PROMPT, "parameters": {"logit_bias": {"9" * 5000: 1}}},
                {"inputs": PROMPT, "parameters": {}, "multimodal_params": {huge: 1}},
            ):
                answer = await cluster.post("/generate", body)
                assert answer.status_code == 417
                assert len(answer.content) < 1100

    run(main())


def test_a_stream_has_one_choice(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings) as cluster:
            answer = await cluster.ask(PROMPT, "/generate_stream", best_of=2)
            assert answer.status_code == 417
            assert answer.json() == {"message": "stream api only support best_of == 1"}

    run(main())


def test_the_token_limit_is_the_smallest_of_all(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings) as cluster:
            cluster.script = cluster.length_script("What")
            await cluster.generate(inputs=[5] * 7, max_new_tokens=CAPACITY_TOKENS - 7)
            await cluster.beat(status(Role.DECODE, worker_id="decode-1", capacity_tokens=64))
            await cluster.beat(status(Role.DECODE, worker_id="decode-2", capacity_tokens=8, state=WorkerState.LOADING))

            async def limit() -> int:
                answer = await cluster.ask([5] * 7, max_new_tokens=10**6)
                assert answer.status_code == 417
                return int(answer.json()["message"].rpartition(" > ")[2])

            while await limit() != 64:  # until the cached registry is read again
                pass
            await cluster.beat(status(Role.DECODE, worker_id="decode-1", capacity_tokens=10**6))
            await cluster.beat(status(Role.DECODE, capacity_tokens=10**6))
            await cluster.beat(status(Role.PREFILL, capacity_tokens=10**6))
            while await limit() != 2048:  # max_position_embeddings
                pass

    run(main())


def test_the_setting_bounds_the_tokens_too(settings: Settings) -> None:
    model = settings.model.model_copy(update={"max_total_tokens": 20})
    changed = settings.model_copy(update={"model": model})

    async def main() -> None:
        async with fake_cluster(changed) as cluster:
            answer = await cluster.ask([5] * 7, max_new_tokens=14)
            assert answer.json() == {"message": "the input prompt token len 7 + max_new_tokens 14 > 20"}
            # Long before anything is tokenized.
            answer = await cluster.ask("x" * 100_000)
            assert answer.status_code == 417
            assert "100000 characters" in answer.json()["message"]

    run(main())


def test_a_body_that_is_too_large_is_a_413(settings: Settings) -> None:
    api = settings.api.model_copy(update={"max_body_bytes": 1000})

    async def main() -> None:
        async with fake_cluster(settings.model_copy(update={"api": api})) as cluster:
            for route in [*ROUTES, "/get_score", "/tokens"]:
                answer = await cluster.ask("x" * 1000, route)
                assert answer.status_code == 413
                assert "1000" in answer.json()["message"]

                async def chunks() -> Any:
                    for _ in range(11):
                        yield b"x" * 100

                answer = await cluster.client.post(route, content=chunks())  # no content-length
                assert answer.status_code == 413

    run(main())


def test_a_full_queue_is_a_503_that_says_when_to_come_again(settings: Settings) -> None:
    queue = settings.queue.model_copy(update={"max_waiting": 1})

    async def main() -> None:
        changed = settings.model_copy(update={"queue": queue})
        async with fake_cluster(changed, takes_jobs=False) as cluster:
            first = asyncio.create_task(cluster.ask(PROMPT))

            async def waits() -> bool:
                return await cluster.broker.prefill_queue.depth() == 1

            await until(waits)
            for route in ROUTES:
                answer = await cluster.ask(PROMPT, route)
                assert answer.status_code == 503
                assert answer.headers["retry-after"] == "1"
                assert answer.json() == {"message": "Server is busy, please try again later (Status code: 503)"}
            assert cluster.services.relay.num_subscriptions == 1
            cluster.script = cluster.length_script("What")
            cluster.start()
            assert (await first).json()["generated_text"] == ["What"]

    run(main())


def test_unknown_paths_and_verbs_are_fastapis(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings) as cluster:
            answer = await cluster.client.get("/nope")
            assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})
            for verb, path in [("GET", "/generate"), ("HEAD", "/healthz"), ("POST", "/token_load"), ("PUT", "/")]:
                assert (await cluster.client.request(verb, path)).status_code == 405
            assert (await cluster.client.get("/generate")).json() == {"detail": "Method Not Allowed"}

    run(main())


def test_request_ids(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings) as cluster:
            cluster.script = cluster.length_script("What")

            async def answered_with(given: str | None, path: str = "/generate") -> str:
                headers = {} if given is None else {"X-Request-Id": given}
                answer = await cluster.post(path, {"inputs": PROMPT, "parameters": {}}, headers=headers)
                named: str = answer.headers["x-request-id"]
                return named

            assert await answered_with("abc.DEF_1-2") == "abc.DEF_1-2"
            assert cluster.requests[-1].request_id == "abc.DEF_1-2"
            assert await answered_with("s", "/generate_stream") == "s"
            assert await answered_with("n", "/nope") == "n"
            # The same id again is answered, and is another request.
            assert await answered_with("abc.DEF_1-2") == "abc.DEF_1-2"
            assert cluster.requests[-1].request_id.startswith("abc.DEF_1-2-")
            for bad in (None, "", "a b", "a:b", "{x}", "x" * 129):
                drawn = await answered_with(bad)
                assert len(drawn) == 32
                assert int(drawn, 16) >= 0
                assert cluster.requests[-1].request_id == drawn

    run(main())


def test_score_and_generate_keep_to_their_models(settings: Settings, reward_dir: Path) -> None:
    reward = settings_for(settings.redis, reward_dir)

    async def main() -> None:
        async with fake_cluster(settings) as cluster:
            answer = await cluster.post("/get_score", {"chat": "hello"})
            assert (answer.status_code, answer.json()) == (
                417,
                {"message": "tiny is not a reward model, it does not serve /get_score"},
            )
        async with fake_cluster(reward) as cluster:
            for route in ROUTES:
                answer = await cluster.ask(PROMPT, route)
                assert answer.status_code == 417
                assert "reward model" in answer.json()["message"]
            answer = await cluster.post("/get_score", {"parameters": {}})
            assert answer.json() == {"message": "'chat'"}

    run(main())


def test_a_redis_that_is_away_is_a_503(settings: Settings, own_redis: Any) -> None:
    redis = settings.redis.model_copy(update={"url": own_redis.url, "command_timeout_s": 0.5})

    async def main() -> None:
        async with fake_cluster(settings.model_copy(update={"redis": redis})) as cluster:
            assert (await cluster.client.get("/health")).status_code == 200
            await cluster.stop()
            own_redis.stop()
            answer = await cluster.ask(PROMPT)
            assert answer.status_code == 503
            assert "queue can not be reached" in answer.json()["message"]
            assert (await cluster.client.get("/health")).json() == {"message": "Error"}
            assert (await cluster.client.get("/liveness")).status_code == 200
            own_redis.start()

    run(main())


def test_a_defect_is_a_500_that_tells_nothing(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken() -> None:
        raise ZeroDivisionError("secret")

    async def main() -> None:
        async with fake_cluster(settings) as cluster:
            monkeypatch.setattr(cluster.services.view, "workers", broken)
            headers = {"X-Request-Id": "mine"}
            answer = await cluster.post("/generate", {"inputs": PROMPT, "parameters": {}}, headers=headers)
            assert (answer.status_code, answer.json()) == (500, {"message": "Internal Server Error"})
            assert answer.headers["x-request-id"] == "mine"

    run(main())


def test_the_api_needs_no_torch() -> None:
    code = "import sys, api.app, api.server, api.__main__; print(*sorted({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
