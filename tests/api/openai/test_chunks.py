"""Streams on the wire: which chunks, in which order, and how a stream ends that fails, pauses or is resumed."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from messages.request import GenerationRequest
from messages.token_event import FinishReason, TokenEvent
from settings.loading import Settings
from tests.api.fake_cluster import LOGPROB, FakeCluster, Script, fake_cluster, run, until

TEXT = " AI refers to"
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HELLO = {"messages": [{"role": "user", "content": "What is AI?"}], "stream": True}
PROMPT = {"prompt": "What is AI?", "stream": True}


def chunks_of(body: str) -> list[Any]:
    """The chunks before [DONE]; the framing is checked."""
    assert body.endswith("\n\n")
    *events, done = body.removesuffix("\n\n").split("\n\n")
    assert done == "data: [DONE]"
    assert all(event.startswith("data: {") and "\n" not in event for event in events)
    return [json.loads(event.removeprefix("data: ")) for event in events]


def choice_of(chunk: Any) -> Any:
    (choice,) = chunk["choices"]
    return choice


def test_a_chats_chunks_in_their_order(chatty: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(chatty) as cluster:
            cluster.script = cluster.length_script(TEXT)
            body = HELLO | {"stream_options": {"include_usage": True}}
            answer = await cluster.post(CHAT, body, headers={"X-Request-Id": "r1"})
            assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert answer.headers["x-accel-buffering"] == "no"
            *chunks, last = chunks_of(answer.text)
            (request,) = cluster.requests
            for chunk in (*chunks, last):
                assert (chunk["id"], chunk["object"]) == ("chatcmpl-r1", "chat.completion.chunk")
                assert (chunk["created"], chunk["model"]) == (request.created_ms // 1000, "chatty")
            assert [choice_of(chunk)["delta"] for chunk in chunks] == [
                {"role": "assistant", "content": ""},
                *({"content": word} for word in (" AI", " refers", " to")),
                {},
            ]
            assert [choice_of(chunk)["finish_reason"] for chunk in chunks] == [None] * 4 + ["length"]
            assert all(chunk["usage"] is None for chunk in chunks)
            num_prompt = len(request.prompt_token_ids)
            assert last["choices"] == []
            assert last["usage"] == {
                "prompt_tokens": num_prompt,
                "completion_tokens": 3,
                "total_tokens": num_prompt + 3,
                "prompt_tokens_details": {"cached_tokens": 0},
            }

    run(main())


def test_usage_comes_where_it_is_asked_for(chatty: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(chatty) as cluster:
            cluster.script = cluster.length_script(TEXT)
            assert all("usage" not in chunk for chunk in chunks_of((await cluster.post(COMPLETIONS, PROMPT)).text))
            body = PROMPT | {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
            chunks = chunks_of((await cluster.post(COMPLETIONS, body)).text)
            assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [1, 2, 3, 3]
            assert chunks[-1]["choices"] == []

    run(main())


def test_a_completions_last_text_has_the_reason(chatty: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(chatty) as cluster:
            cluster.script = cluster.length_script(TEXT)
            chunks = chunks_of((await cluster.post(COMPLETIONS, PROMPT)).text)
            assert [choice_of(chunk) for chunk in chunks] == [
                {"index": 0, "text": " AI", "logprobs": None, "finish_reason": None},
                {"index": 0, "text": " refers", "logprobs": None, "finish_reason": None},
                {"index": 0, "text": " to", "logprobs": None, "finish_reason": "length"},
            ]
            assert {chunk["object"] for chunk in chunks} == {"text_completion"}

    run(main())


def test_what_completes_no_character_makes_no_chunk(chatty: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(chatty) as cluster:
            ids = cluster.ids(" to🚀")
            assert len(ids) > 2  # no corpus had it: its bytes are tokens of their own
            cluster.script = cluster.events_script(cluster.events(ids))
            for path, field in ((CHAT, "content"), (COMPLETIONS, "text")):
                body = (HELLO if path == CHAT else PROMPT) | {"max_tokens": 20}
                choices = [choice_of(chunk) for chunk in chunks_of((await cluster.post(path, body)).text)]
                texts = [choice.get("delta", choice).get(field) for choice in choices]
                assert [text for text in texts if text] == [" to", "🚀"]
                assert choices[-1]["finish_reason"] == "length"

    run(main())


def test_several_prompts_and_choices_are_numbered_through(chatty: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(chatty) as cluster:

            async def script(request: GenerationRequest, choice: int) -> AsyncIterator[TokenEvent]:
                first = cluster.ids(" AI" if request.prompt_token_ids == [5, 6] else " to")
                for event in cluster.events([*first, *cluster.ids(" is" * choice)]):
                    yield event

            cluster.script = script
            body = {"prompt": [[5, 6], "What"], "n": 2, "stream": True, "stream_options": {"include_usage": True}}
            *chunks, last = chunks_of((await cluster.post(COMPLETIONS, body)).text)
            texts = ["", "", "", ""]
            ended = []
            for chunk in chunks:
                choice = choice_of(chunk)
                texts[choice["index"]] += choice["text"]
                ended += [choice["index"]] if choice["finish_reason"] else []
            assert texts == [" AI", " AI is", " to", " to is"]
            assert sorted(ended) == [0, 1, 2, 3]
            assert last["usage"]["prompt_tokens"] == 2 + 1  # once, however many choices
            assert last["usage"]["completion_tokens"] == 1 + 2 + 1 + 2
            whole = (await cluster.post(COMPLETIONS, body | {"stream": False, "stream_options": None})).json()
            assert [choice["text"] for choice in whole["choices"]] == texts
            assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2, 3]
            assert whole["usage"] == last["usage"]
            assert cluster.services.relay.num_subscriptions == 0

    run(main())


def test_every_choice_of_a_chat_begins_with_its_role(chatty: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(chatty) as cluster:
            cluster.script = cluster.length_script(TEXT)
            chunks = chunks_of((await cluster.post(CHAT, HELLO | {"n": 2})).text)
            for index in (0, 1):
                deltas = [choice_of(chunk)["delta"] for chunk in chunks if choice_of(chunk)["index"] == index]
                assert deltas[0] == {"role": "assistant", "content": ""} and deltas[-1] == {}
                assert "".join(delta.get("content", "") for delta in deltas) == TEXT

    run(main())


def failing(cluster: FakeCluster, after: int) -> Script:
    error = TokenEvent(finish_reason=FinishReason.ERROR, error="the worker broke", error_status=500)
    return cluster.events_script([*cluster.events(cluster.ids(TEXT * 9))[:after], error])


@pytest.mark.parametrize("n", [1, 2])
def test_a_failure_before_the_first_token_is_a_status_and_later_an_event(chatty: Settings, n: int) -> None:
    async def main() -> None:
        async with fake_cluster(chatty) as cluster:
            cluster.script = failing(cluster, 0)
            answer = await cluster.post(CHAT, HELLO | {"n": n})
            assert answer.status_code == 500
            expected = {"message": "the worker broke", "type": "server_error", "param": None, "code": 500}
            assert answer.json() == {"error": expected}
            cluster.script = failing(cluster, 2)
            answer = await cluster.post(CHAT, HELLO | {"n": n})
            assert answer.status_code == 200
            chunks = chunks_of(answer.text)
            assert chunks[-1] == {"error": expected}
            assert "error" not in chunks[-2]
            assert cluster.services.relay.num_subscriptions == 0

    run(main())


def test_a_quiet_stream_is_kept_alive_by_comments_and_lightllms_is_not(chatty: Settings) -> None:
    async def main() -> None:
        api = chatty.api.model_copy(update={"keep_alive_s": 0.5})
        async with fake_cluster(chatty.model_copy(update={"api": api})) as cluster:
            speak = asyncio.Event()

            async def script(request: GenerationRequest, choice: int) -> AsyncIterator[TokenEvent]:
                await speak.wait()
                for event in cluster.events(cluster.ids(TEXT)):
                    yield event

            cluster.script = script
            async with cluster.serving() as port:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                body = json.dumps(HELLO).encode()
                head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
                writer.write(head.encode() + body)
                quiet = asyncio.create_task(cluster.ask("hi", "/generate_stream"))
                before = await asyncio.wait_for(reader.readuntil(b": keep-alive\n\n"), 10)
                assert b"200 OK" in before and b"data:" not in before
                speak.set()
                rest = await reader.read()
                assert b'"role":"assistant"' in rest and b"data: [DONE]\n\n" in rest
                assert "keep-alive" not in (await quiet).text
                writer.close()

    run(main())


def test_a_client_that_leaves_ends_every_choice_of_every_prompt(chatty: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(chatty) as cluster:

            async def script(request: GenerationRequest, choice: int) -> AsyncIterator[TokenEvent]:
                yield TokenEvent(5)
                await asyncio.Event().wait()

            cluster.script = script
            async with cluster.serving() as port:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                body = json.dumps({"prompt": ["What", "is"], "n": 2, "stream": True}).encode()
                head = (
                    f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nX-Request-Id: r\r\nContent-Length: {len(body)}\r\n\r\n"
                )
                writer.write(head.encode() + body)
                await reader.readuntil(b"data: ")
                writer.close()

                async def all_have_ended() -> bool:
                    ends = [await cluster.last_event(f"r-{part}", choice) for part in (0, 1) for choice in (0, 1)]
                    return all(end is not None and end.finish_reason == FinishReason.ABORT for end in ends)

                await until(all_have_ended)
            assert cluster.services.relay.num_subscriptions == 0

    run(main())


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_a_stream_is_resumed_after_any_token(chatty: Settings, path: str) -> None:
    async def main() -> None:
        async with fake_cluster(chatty) as cluster:
            cluster.script = cluster.length_script(TEXT)
            body = (HELLO if path == CHAT else PROMPT) | {"stream_options": {"include_usage": True}}
            headers = {"X-Request-Id": "r1", "X-SSE-Ids": "true"}
            whole = (await cluster.post(path, body, headers=headers)).text
            assert [line for line in whole.splitlines() if line.startswith("id:")] == ["id: 0", "id: 1", "id: 2"]
            for seen in (0, 1):
                rest = await cluster.client.get("/requests/r1/stream", headers={"Last-Event-ID": str(seen)})
                assert whole.endswith(rest.text) and rest.text.startswith(f"id: {seen + 1}\ndata: ")
            view = (await cluster.client.get("/requests/r1")).json()
            field = "message" if path == CHAT else "text"
            assert TEXT in str(view["result"]["choices"][0][field])
            refused = await cluster.post(path, body | {"n": 2}, headers=headers)
            assert refused.status_code == 400 and "X-SSE-Ids" in refused.json()["error"]["message"]

    run(main())


def test_logprobs_come_with_their_tokens(chatty: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(chatty) as cluster:
            first, second = cluster.ids(" AI to")
            tops = ((first, -0.25), (second, -2.0), (7, float("-inf")))
            cluster.script = cluster.events_script(
                [TokenEvent(first, -0.25, top=tops), TokenEvent(second, -2.0, FinishReason.LENGTH, top=tops)]
            )
            chunks = chunks_of((await cluster.post(CHAT, HELLO | {"logprobs": True, "top_logprobs": 3})).text)
            said = [choice_of(chunk)["logprobs"] for chunk in chunks]
            assert said[0] is said[-1] is None
            row = said[1]["content"][0]
            assert (row["token"], row["logprob"], row["bytes"]) == (" AI", -0.25, list(b" AI"))
            assert [(one["token"], one["logprob"]) for one in row["top_logprobs"]] == [
                (" AI", -0.25),
                (" to", -2.0),
                (cluster.services.tokenizer.names.text(7), -9999.0),
            ]
            assert [request.sampling.num_top_logprobs for request in cluster.requests] == [3]
            chunks = chunks_of((await cluster.post(COMPLETIONS, PROMPT | {"logprobs": 1})).text)
            listing = choice_of(chunks[1])["logprobs"]
            assert listing == {
                "tokens": [" to"],
                "token_logprobs": [-2.0],
                "top_logprobs": [{" AI": -0.25, " to": -2.0}],  # and the chosen one, which is not the likeliest
                "text_offset": [3],
            }
            assert LOGPROB not in listing["token_logprobs"]

    run(main())
