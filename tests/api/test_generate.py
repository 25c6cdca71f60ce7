"""/generate, /generate_stream, / and /tokens over real Redis: shapes, rules and bytes."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from api.model_facts import ModelFacts
from messages.request import GenerationRequest
from messages.token_event import FinishReason, TokenEvent
from settings.loading import Settings
from tests.api.fake_cluster import LOGPROB, FakeCluster, fake_cluster, run
from tests.api.tiny_models import END, EOS, START, TOOL

PROMPT = "What is AI?"
TEXT = " AI refers to machines"


def frames_of(body: str) -> list[dict[str, Any]]:
    """The events of a stream, whose framing is checked."""
    assert body.endswith("\n\n")
    frames = body.removesuffix("\n\n").split("\n\n")
    assert all(frame.startswith("data:{") and frame.endswith("}") and "\n" not in frame for frame in frames)
    return [json.loads(frame.removeprefix("data:")) for frame in frames]


def test_generate_answers_in_lightllms_shape(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings) as cluster:
            cluster.script = cluster.length_script(TEXT)
            answer = await cluster.ask(PROMPT, max_new_tokens=4)
            num_tokens = len(cluster.ids(TEXT))
            assert answer.status_code == 200
            assert answer.headers["content-type"] == "application/json"
            assert answer.json() == {
                "generated_text": [TEXT],
                "count_output_tokens": num_tokens,
                "finish_reason": "length",
                "prompt_tokens": len(cluster.ids(PROMPT)),
            }

    run(main())


def test_the_request_reaches_the_workers_as_it_was_meant(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings) as cluster:
            cluster.script = cluster.length_script(TEXT)
            await cluster.generate(inputs=PROMPT, seed=9, ignore_eos=True, stop_sequences=["zzz", [1, 2]])
            await cluster.generate(inputs=[5, 6, 7], best_of=2)
            first, second, _ = cluster.requests
            assert first.prompt_token_ids == cluster.ids(PROMPT)
            assert (first.sampling.seed, first.sampling.ignore_eos, first.sampling.max_new_tokens) == (9, True, 16)
            assert (first.output.stop_strings, first.output.stop_token_ids) == (("zzz",), ((1, 2),))
            assert (first.n, first.kind, first.api_id) == (1, "generate", cluster.services.api_id)
            assert (second.prompt_token_ids, second.n) == ([5, 6, 7], 2)
            await cluster.generate(inputs=PROMPT)
            seeds = {request.sampling.seed for request in cluster.requests}
            assert len(seeds) == 3  # the choices of one request share theirs
            assert all(0 <= seed < 2**63 for seed in seeds)

    run(main())


def test_several_choices_are_lists(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings) as cluster:

            async def script(request: GenerationRequest, choice: int) -> AsyncIterator[TokenEvent]:
                ids = cluster.ids("What is the")[: choice + 1]
                for event in cluster.events(ids, FinishReason.STOP if choice else FinishReason.LENGTH):
                    yield event

            cluster.script = script
            body = await cluster.generate(inputs=PROMPT, best_of=3, n=3, return_details=True)
            assert body["generated_text"] == ["What", "What is", "What is the"]
            assert body["count_output_tokens"] == [1, 2, 3]
            assert body["finish_reason"] == ["length", "stop", "stop"]
            assert body["prompt_tokens"] == len(cluster.ids(PROMPT))
            assert [len(tokens) for tokens in body["tokens"]] == [1, 2, 3]
            assert cluster.services.relay.num_subscriptions == 0

    run(main())


def test_return_details_lists_every_token(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings) as cluster:
            ids = cluster.ids("What is")
            cluster.script = cluster.events_script(
                [TokenEvent(ids[0], -1.0), TokenEvent(ids[1], -2.0), TokenEvent(0, -6.0, FinishReason.STOP)]
            )
            body = await cluster.generate(inputs=PROMPT, return_details=True)
            rows = [
                (ids[0], -1.0, -1.0, False, 1, "What"),
                (ids[1], -2.0, -1.5, False, 2, " is"),
                (0, -6.0, -3.0, True, 3, ""),
            ]
            assert body["tokens"] == [
                {
                    "id": token_id,
                    "logprob": logprob,
                    "cumlogprob": mean,
                    "special": special,
                    "count_output_tokens": count,
                    "mtp_accepted_token_num": 0,
                    "prompt_tokens": len(cluster.ids(PROMPT)),
                    "text": text,
                }
                for token_id, logprob, mean, special, count, text in rows
            ]
            assert "tokens" not in await cluster.generate(inputs=PROMPT)

    run(main())


def test_stream_is_framed_byte_by_byte(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings) as cluster:
            first, second = cluster.ids("What is")
            cluster.script = cluster.events_script([TokenEvent(first, -1.5), TokenEvent(0, -0.25, FinishReason.STOP)])
            answer = await cluster.ask([5, 6, 7], "/generate_stream")
            assert second
            assert answer.status_code == 200
            assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert answer.headers["x-accel-buffering"] == "no"
            assert answer.headers["cache-control"] == "no-cache"
            assert (
                answer.content
                == (
                    b'data:{"token":{"id":%d,"text":"What","logprob":-1.5,"special":false,"count_output_tokens":1,'
                    b'"prompt_tokens":3},"generated_text":null,"finished":false,"finish_reason":null,"details":null}\n\n'
                    b'data:{"token":{"id":0,"text":"","logprob":-0.25,"special":true,"count_output_tokens":2,'
                    b'"prompt_tokens":3},"generated_text":null,"finished":true,"finish_reason":"stop","details":null}\n\n'
                )
                % first
            )

    run(main())


@pytest.mark.parametrize("text", [TEXT, "你好，世界 🙂🙃", "def main():\n\n\tprint('x')\r\n", 'quotes " and \\ /'])
def test_stream_and_generate_give_the_same_text(settings: Settings, text: str) -> None:
    async def main() -> None:
        async with fake_cluster(settings) as cluster:
            cluster.script = cluster.length_script(text)
            whole = await cluster.generate(inputs=PROMPT)
            events = frames_of((await cluster.ask(PROMPT, "/generate_stream")).text)
            assert whole["generated_text"] == [text]
            assert "".join(event["token"]["text"] for event in events) == text
            assert [event["token"]["count_output_tokens"] for event in events] == list(range(1, len(events) + 1))
            assert [event["finished"] for event in events] == [False] * (len(events) - 1) + [True]
            assert {event["token"]["logprob"] for event in events} == {LOGPROB}

    run(main())


def test_root_streams_if_told_so(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings) as cluster:
            cluster.script = cluster.length_script(TEXT)
            body = {"inputs": PROMPT, "parameters": {}}
            for stream in ({}, {"stream": False}, {"stream": None}):
                assert (await cluster.post("/", body | stream)).json()["generated_text"] == [TEXT]
            answer = await cluster.post("/", body | {"stream": True})
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert "".join(event["token"]["text"] for event in frames_of(answer.text)) == TEXT

    run(main())


def test_special_tokens_in_the_output(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings) as cluster:
            start = cluster.ids(START)[0]
            tool = cluster.ids(TOOL)[0]
            (word,) = cluster.ids("What")
            cluster.script = cluster.events_script(cluster.events([start, word, tool, word, 0], FinishReason.STOP))

            async def text(**parameters: Any) -> str:
                body = await cluster.generate(inputs=PROMPT, **parameters)
                assert body["count_output_tokens"] == 5
                written: str = body["generated_text"][0]
                return written

            assert await text() == f"What {TOOL} What"
            assert await text(skip_special_tokens=False) == f"{START} What {TOOL} What"
            assert await text(add_spaces_between_special_tokens=False) == f"What{TOOL}What"
            assert await text(print_eos_token=True) == f"What {TOOL} What{EOS}"
            assert (
                await text(skip_special_tokens=False, add_spaces_between_special_tokens=False, print_eos_token=True)
                == f"{START}What{TOOL}What{EOS}"
            )

    run(main())


def test_add_special_tokens_decides_on_the_prompt(settings: Settings, tmp_path: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    from settings.model import ModelSettings
    from tests.api.tiny_models import BYTE_LEVEL_CONFIG, byte_level_tokenizer, write_model

    tokenizer = byte_level_tokenizer()
    tokenizer.post_processor = TemplateProcessing(single=f"{START} $A", special_tokens=[(START, 1)])
    folder = write_model(tmp_path / "bos", tokenizer, BYTE_LEVEL_CONFIG, {})
    changed = settings.model_copy(update={"model": ModelSettings(path=str(folder))})

    async def main() -> None:
        async with fake_cluster(changed) as cluster:
            cluster.script = cluster.length_script("What")
            bare = cluster.ids(PROMPT)
            await cluster.generate(inputs=PROMPT)
            await cluster.generate(inputs=PROMPT, add_special_tokens=False)
            assert [request.prompt_token_ids for request in cluster.requests] == [[1, *bare], bare]
            for parameters, extra in (({}, 1), ({"add_special_tokens": False}, 0)):
                answer = await cluster.post("/tokens", {"text": PROMPT, "parameters": parameters})
                assert answer.json() == {"ntokens": len(bare) + extra}

    run(main())


def test_tokens_counts(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings, workers=False) as cluster:
            body = {"text": PROMPT, "parameters": {}, "multimodal_params": {}}
            expected = {"ntokens": len(cluster.ids(PROMPT))}
            assert (await cluster.post("/tokens", body)).json() == expected
            assert (await cluster.client.request("GET", "/tokens", json=body)).json() == expected
            assert (await cluster.post("/tokens", {"text": PROMPT})).json() == expected

    run(main())


# -- stop sequences ----------------------------------------------------------------------------------------------------


async def stopped(cluster: FakeCluster, stops: Any, **parameters: Any) -> tuple[str, str, int]:
    """(text, finish_reason, count), the same from both routes."""
    body = await cluster.generate(inputs=PROMPT, stop_sequences=stops, **parameters)
    events = frames_of(
        (await cluster.ask(PROMPT, "/generate_stream", stop_sequences=stops, **parameters)).text,
    )
    text = "".join(event["token"]["text"] for event in events)
    assert body["generated_text"] == [text]
    assert body["finish_reason"] == events[-1]["finish_reason"]
    assert body["count_output_tokens"] == len(events)
    return text, body["finish_reason"], len(events)


def test_a_stop_string_across_token_borders_ends_the_output(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings) as cluster:
            ids = [cluster.ids(character)[0] for character in "one STOP two"]
            cluster.script = cluster.events_script(cluster.events(ids))
            assert await stopped(cluster, "STOP") == ("one ", "stop", 8)
            assert await stopped(cluster, ["nope", "STOP"], include_stop_str_in_output=True) == ("one STOP", "stop", 8)
            assert await stopped(cluster, [ids[4:8]]) == ("one ", "stop", 8)
            assert await stopped(cluster, [ids[4:8]], include_stop_str_in_output=True) == ("one STOP", "stop", 8)
            # No stop: what was held back comes with the last event.
            assert await stopped(cluster, ["two!"]) == ("one STOP two", "length", 12)

    run(main())


def test_a_stop_ends_the_sequence_for_the_workers_too(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings) as cluster:
            ids = cluster.ids("What is the")

            async def endless(request: GenerationRequest, choice: int) -> AsyncIterator[TokenEvent]:
                while True:  # ends when an append is refused
                    for token_id in ids:
                        yield TokenEvent(token_id, -1.0)

            cluster.script = endless
            answer = await cluster.ask(PROMPT, stop_sequences=[" the"], max_new_tokens=900)
            assert answer.json()["generated_text"] == ["What is"]
            event = await cluster.last_event(answer.headers["x-request-id"])
            assert event == TokenEvent(finish_reason=FinishReason.STOP)

    run(main())


def test_a_stop_that_the_last_token_completes_is_a_stop(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings) as cluster:
            cluster.script = cluster.length_script("What is the")
            assert await stopped(cluster, " the") == ("What is", "stop", 3)

    run(main())


def test_held_text_comes_with_the_eos_event(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings) as cluster:
            ids = [*cluster.ids("What is"), 0]
            cluster.script = cluster.events_script(cluster.events(ids, FinishReason.STOP))
            events = frames_of((await cluster.ask(PROMPT, "/generate_stream", stop_sequences=" is it")).text)
            assert [event["token"]["text"] for event in events] == ["What", "", " is"]
            assert events[-1]["token"]["special"]

    run(main())


def test_facts_of_the_model(settings: Settings) -> None:
    facts = ModelFacts.from_dir(settings.model)
    assert facts.eos_token_ids == {0}
    assert (facts.vocab_size, facts.max_position_embeddings, facts.is_reward) == (620, 2048, False)
    assert END != START
