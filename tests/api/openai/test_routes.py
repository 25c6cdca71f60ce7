"""Models, tokens, errors: what OpenAI's routes say besides text; and that a key guards and pays for them."""

import json
from pathlib import Path
from typing import Any

import pytest

from messages.token_event import PromptLogprob, TokenEvent
from messages.worker_status import Role
from settings.loading import Settings
from tests.api.fake_cluster import fake_cluster, run, until
from tests.api.keys import KeyFile

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def test_models_version_and_ping(chatty: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(chatty, takes_jobs=False) as cluster:
            (model,) = (await cluster.client.get("/v1/models")).json()["data"]
            assert (model["id"], model["object"], model["max_model_len"]) == ("chatty", "model", 1000)
            assert (await cluster.client.get("/v1/models/chatty")).json() == model
            unknown = await cluster.client.get("/v1/models/org/other")
            assert unknown.status_code == 404 and unknown.json()["error"]["param"] == "model"
            for path in ("/v1/models/two%0Alines", "/v1/nothing"):
                nobody = await cluster.client.get(path)
                assert nobody.status_code == 404 and nobody.json()["error"]["type"] == "not_found_error", path
            assert set((await cluster.client.get("/version")).json()) == {"version"}
            assert [(await cluster.client.request(one, "/ping")).status_code for one in ("GET", "POST")] == [200, 200]
            await cluster.bury(Role.DECODE)

            async def is_red() -> bool:
                return (await cluster.client.get("/ping")).status_code == 503

            await until(is_red)

    run(main())


def test_text_to_ids_and_back(chatty: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(chatty, takes_jobs=False) as cluster:
            text = "What is <|im_end|> 🚀?"
            said = (await cluster.post("/tokenize", {"prompt": text, "return_token_strs": True})).json()
            assert said["tokens"] == cluster.ids(text) and said["count"] == len(said["tokens"])
            assert said["max_model_len"] == 1000
            assert said["token_strs"][:2] == ["What", " is"]
            assert len(set(said["token_strs"])) == len(set(said["tokens"]))  # parts of a character have names, too
            assert (await cluster.post("/detokenize", {"tokens": said["tokens"]})).json() == {"prompt": text}
            assert "im_start" in (await cluster.client.get("/tokenizer_info")).json()["chat_template"]
            messages = [{"role": "user", "content": "What"}]
            chat = (await cluster.post("/tokenize", {"messages": messages})).json()
            assert chat["tokens"] == cluster.ids("<|im_start|>user\nWhat<|im_end|>\n<|im_start|>assistant\n")
            for path, body in (
                ("/tokenize", {}),
                ("/tokenize", {"prompt": [1]}),
                ("/detokenize", {"tokens": "a"}),
                ("/detokenize", {"tokens": [10**6]}),
            ):
                answer = await cluster.post(path, body)
                assert (answer.status_code, list(answer.json())) == (400, ["error"]), path

    run(main())


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(
    ("code", "param", "more"),
    [
        (400, "temperature", {"temperature": 3e38 * 10}),
        (400, "tools", {"tools": [{}]}),
        (400, "response_format", {"response_format": {"type": "yaml"}}),
        (400, None, {"max_tokens": 5000}),
        (404, "model", {"model": "gpt-9"}),
        (400, "model", {"model": 5}),
    ],
)
def test_errors_are_objects_that_name_the_field(
    chatty: Settings, path: str, code: int, param: str | None, more: dict[str, Any]
) -> None:
    async def main() -> None:
        async with fake_cluster(chatty) as cluster:
            body = {"messages": [{"role": "user", "content": "Hi"}], "prompt": "Hi"} | more
            for stream in (False, True):
                answer = await cluster.post(path, body | {"stream": stream})
                assert answer.status_code == code
                error = answer.json()["error"]
                assert (error["param"], error["code"]) == (param, code) and error["message"]
            assert cluster.requests == []

    run(main())


def test_refusals_are_openais_on_its_routes_and_lightllms_on_the_others(chatty: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(chatty, takes_jobs=False) as cluster:
            for content in (b"{", b"[]"):
                answer = await cluster.client.post(COMPLETIONS, content=content)
                assert (answer.status_code, answer.json()["error"]["code"]) == (400, 400)
                answer = await cluster.client.post("/generate", content=content)
                assert (answer.status_code, list(answer.json())) == (417, ["message"])
            huge = await cluster.client.post(COMPLETIONS, content=b"", headers={"content-length": str(10**9)})
            assert (huge.status_code, huge.json()["error"]["code"]) == (413, 413)
            late = await cluster.post(COMPLETIONS, {"prompt": "Hi"}, headers={"X-Request-Timeout": "0.2"})
            assert (late.status_code, late.json()["error"]["type"]) == (504, "timeout_error")

    run(main())


def test_a_full_queue_is_a_503_with_a_time(chatty: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(chatty, takes_jobs=False) as cluster:
            answer = await cluster.post(COMPLETIONS, {"prompt": ["Hi"] * 6, "n": 2})  # of 8 places
            assert answer.status_code == 503 and int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"]["type"] == "overloaded_error"
            # Those that had come in before there was no more room are not left behind.
            assert await cluster.broker.request_reader.loads() == []

    run(main())


def test_a_key_guards_and_pays_for_openais_routes(chatty: Settings, tmp_path: Path) -> None:
    keys = KeyFile(tmp_path)
    keys.add("alice", tokens_per_min=40)

    async def main() -> None:
        async with fake_cluster(keys.settings(chatty)) as cluster:
            cluster.script = cluster.length_script(" AI")
            none = await cluster.client.get("/v1/models")
            assert (none.status_code, none.json()["error"]["type"]) == (401, "authentication_error")
            for path in ("/v1/models", "/v1/models/chatty", "/version"):
                assert (await cluster.client.get(path, headers=keys.bearer("alice"))).status_code == 200
            body = {"prompt": ["Hi", "Hi"], "max_tokens": 9}
            assert (await cluster.post(COMPLETIONS, body, headers=keys.bearer("alice"))).status_code == 200
            refused = await cluster.post(COMPLETIONS, body | {"n": 2}, headers=keys.bearer("alice"))
            assert (refused.status_code, refused.json()["error"]["type"]) == (429, "rate_limit_error")

    run(main())


def test_an_echo_brings_the_prompts_logprobs(chatty: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(chatty) as cluster:
            prompt = cluster.ids("What is AI")
            said = (PromptLogprob(-1.5, ((prompt[1], -1.5), (9, -3.0))), PromptLogprob(-float("inf"), ((9, -0.5),)))
            first = TokenEvent(cluster.ids("?")[0], -0.75, prompt_logprobs=said, num_cached_tokens=0)
            cluster.script = cluster.events_script([first, *cluster.events(cluster.ids(" to"))])
            body = {"prompt": prompt, "echo": True, "logprobs": 1, "max_tokens": 2}
            whole = (await cluster.post(COMPLETIONS, body)).json()["choices"][0]
            assert whole["text"] == "What is AI? to"
            name = cluster.services.tokenizer.names.text(9)
            assert whole["logprobs"] == {
                "tokens": ["What", " is", " AI", "?", " to"],
                "token_logprobs": [None, -1.5, -9999.0, -0.75, -0.5],
                "top_logprobs": [None, {" is": -1.5}, {name: -0.5, " AI": -9999.0}, {"?": -0.75}, {" to": -0.5}],
                "text_offset": [0, 4, 7, 10, 11],
            }
            streamed = (await cluster.post(COMPLETIONS, body | {"stream": True})).text
            chunks = [json.loads(line[6:]) for line in streamed.split("\n\n") if line.startswith("data: {")]
            assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["text"]
            for name, values in whole["logprobs"].items():
                assert [one for chunk in chunks for one in chunk["choices"][0]["logprobs"][name]] == values
            only = (await cluster.post(COMPLETIONS, body | {"max_tokens": 0})).json()
            assert only["choices"][0]["text"] == "What is AI" and only["usage"]["completion_tokens"] == 0
            assert only["choices"][0]["logprobs"]["tokens"] == ["What", " is", " AI"]
            (request, *_) = cluster.requests
            assert request.sampling.num_prompt_logprobs == 1
            too_many = await cluster.post(COMPLETIONS, body | {"prompt": [5] * 900, "logprobs": 20})
            assert too_many.status_code == 200
            limited = cluster.services.settings.api.max_prompt_logprobs
            assert limited >= 900 * 21

    run(main())


def test_lightllm_lists_a_prompt_in_its_own_shape(chatty: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(chatty) as cluster:
            said = (PromptLogprob(-1.5, ((9, -0.5),)), PromptLogprob(-2.0))
            cluster.script = cluster.events_script([TokenEvent(8, -0.75, prompt_logprobs=said), *cluster.events([7])])
            expected = {
                "prompt_token_ids": [4, 5, 6],
                "prompt_logprobs": [[4, {"5": -1.5, "9": -0.5}], [5, {"6": -2.0}]],
            }
            whole = (await cluster.ask([4, 5, 6], prompt_logprobs=1)).json()
            assert {name: whole[name] for name in expected} == expected
            stream = (await cluster.ask([4, 5, 6], "/generate_stream", prompt_logprobs=1)).text
            first, second = (json.loads(line[5:]) for line in stream.split("\n\n") if line)
            assert {name: first[name] for name in expected} == expected
            assert not expected.keys() & second.keys() and first["details"] is None
            assert not expected.keys() & (await cluster.ask([4, 5, 6])).json().keys()
            assert (await cluster.ask([4], prompt_logprobs=21)).status_code == 417

    run(main())
