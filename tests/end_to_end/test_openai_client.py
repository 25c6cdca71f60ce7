"""OpenAI's own client against a cluster of ours: what it sends is understood, what we send it can read."""

import asyncio
import json
import math
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, ConfigDict

from tests.end_to_end.cluster import Cluster

FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
PROMPT = "What is AI?"
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Berlin"]}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER: Any = {
    "type": "function",
    "function": {"name": "get_weather", "description": "The weather of a city.", "parameters": CITY},
}


class Capital(BaseModel):
    """A form for `parse`."""

    model_config = ConfigDict(extra="forbid")
    city: Literal["Paris", "Berlin"]


GREETING = " AI refers to machines that can perform tasks that typically require human intelligence"


@pytest.fixture(scope="module")
def client(demo: Cluster) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=demo.url + "/v1", api_key="none", timeout=60, max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def model(client: openai.OpenAI) -> str:
    (served,) = client.models.list().data
    assert client.models.retrieve(served.id) == served
    return str(served.id)


def test_a_chat_answers_as_the_template_asks(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=FRANCE, temperature=0)
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == "The capital of France is Paris."
    assert choice.finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    again = client.chat.completions.create(model=model, messages=FRANCE, temperature=0)
    assert again.usage is not None and again.usage.prompt_tokens_details is not None
    assert (again.usage.prompt_tokens_details.cached_tokens or 0) >= 16  # a block


def test_a_streamed_chat_says_the_same_chunk_by_chunk(client: openai.OpenAI, model: str) -> None:
    chunks = list(
        client.chat.completions.create(
            model=model,
            messages=FRANCE,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            logprobs=True,
            top_logprobs=3,
        )
    )
    *spoken, last = chunks
    assert {(chunk.id, chunk.created, chunk.model) for chunk in chunks} == {(last.id, last.created, model)}
    assert spoken[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in spoken) == "The capital of France is Paris."
    assert [chunk.choices[0].finish_reason for chunk in spoken] == [None] * (len(spoken) - 1) + ["stop"]
    assert last.choices == [] and last.usage is not None and last.usage.completion_tokens == len(spoken) - 2
    rows = [row for chunk in spoken if (said := chunk.choices[0].logprobs) for row in said.content or []]
    assert len(rows) == last.usage.completion_tokens
    for row in rows:
        assert len(row.top_logprobs) == 3
        assert (row.top_logprobs[0].token, row.top_logprobs[0].logprob) == (row.token, row.logprob)  # greedy
        assert bytes(row.bytes or []).decode() == row.token


def test_choices_differ_by_their_seeds_and_repeat(client: openai.OpenAI, model: str) -> None:
    def ask(seed: int) -> list[str]:
        answer = client.completions.create(model=model, prompt=PROMPT, n=3, seed=seed, max_tokens=12, temperature=1)
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        assert answer.usage is not None and answer.usage.prompt_tokens == 4
        return [choice.text for choice in answer.choices]

    first = ask(7)
    assert len(set(first)) == 3
    assert ask(7) == first
    assert ask(8) != first
    streamed = ["", "", ""]
    for chunk in client.completions.create(
        model=model, prompt=PROMPT, n=3, seed=7, max_tokens=12, temperature=1, stream=True
    ):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == first


def test_completions_stop_where_they_are_told(client: openai.OpenAI, model: str) -> None:
    def ask(**more: object) -> str:
        answer = client.completions.create(
            model=model, prompt=PROMPT, temperature=0, max_tokens=13, extra_body=more or None
        )
        assert answer.choices[0].finish_reason == ("stop" if "stop" in str(more) else "length")
        return str(answer.choices[0].text)

    assert ask() == GREETING
    assert ask(stop=["tasks", " can"]) == " AI refers to machines that"
    assert ask(stop="machines", include_stop_str_in_output=True) == " AI refers to machines"
    token_id = client.post("/../tokenize", body={"prompt": " machines"}, cast_to=dict)["tokens"][0]
    assert ask(stop_token_ids=[token_id]) == " AI refers to"
    assert " machines" not in ask(logit_bias={str(token_id): -100})


def test_prompts_are_scored_as_lm_eval_asks(client: openai.OpenAI, model: str) -> None:
    """Token ids in, several prompts, echo, one token out: logprobs of prompt tokens by their places."""
    texts = ["The capital of France is Paris", "The capital of France is banana", "Hi there"]
    prompts = [client.post("/../tokenize", body={"prompt": one}, cast_to=dict)["tokens"] for one in texts]
    answer = client.completions.create(
        model=model, prompt=prompts, echo=True, max_tokens=1, logprobs=1, temperature=0, seed=1234
    )
    sums: list[float] = []
    for choice, text, prompt in zip(answer.choices, texts, prompts, strict=True):
        said = choice.logprobs
        assert said is not None and said.tokens and said.token_logprobs and said.top_logprobs and said.text_offset
        assert len(said.tokens) == len(said.token_logprobs) == len(said.top_logprobs) == len(prompt) + 1
        assert choice.text.startswith(text) and "".join(said.tokens[:-1]) == text
        assert said.text_offset[0] == 0 and said.token_logprobs[0] is None
        for logprob, tops in zip(said.token_logprobs[1:], said.top_logprobs[1:], strict=True):
            assert max(tops.values()) >= logprob > -math.inf  # equal, to the bit, where the token is the likeliest
        sums.append(sum(said.token_logprobs[5:-1]))
    assert sums[0] > sums[1] + 5  # Paris, not banana
    alone = client.completions.create(model=model, prompt=texts[0], echo=True, max_tokens=0, logprobs=1)
    assert alone.choices[0].text == texts[0] and alone.choices[0].logprobs is not None
    assert alone.choices[0].logprobs.token_logprobs is not None and answer.choices[0].logprobs is not None
    expected = answer.choices[0].logprobs.token_logprobs
    assert expected is not None
    assert alone.choices[0].logprobs.token_logprobs[1:] == pytest.approx(expected[1:-1], abs=1e-3)
    assert alone.usage is not None and alone.usage.completion_tokens == 0


def test_the_clients_errors_are_the_right_ones(client: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature must be in") as refused:
        client.completions.create(model=model, prompt=PROMPT, temperature=-1)
    assert refused.value.param == "temperature" and refused.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError, match="which is no tool of this request") as refused:
        client.chat.completions.create(
            model=model,
            messages=FRANCE,
            tools=[WEATHER],
            tool_choice={"type": "function", "function": {"name": "clock"}},
        )
    assert refused.value.param == "tool_choice"
    with pytest.raises(openai.NotFoundError, match="gpt-9"):
        client.completions.create(model="gpt-9", prompt=PROMPT)
    with pytest.raises(openai.BadRequestError, match="max_new_tokens"):
        client.completions.create(model=model, prompt=PROMPT, max_tokens=10**6)
    # What changes no answer is taken.
    client.chat.completions.create(
        model=model,
        messages=FRANCE,
        max_completion_tokens=1,
        user="somebody",
        store=False,
        metadata={"a": "b"},
        service_tier="auto",
    )


def test_a_message_is_continued(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(
        model=model,
        messages=[*FRANCE, {"role": "assistant", "content": "The capital of"}],
        temperature=0,
        extra_body={"continue_final_message": True},
    )
    assert answer.choices[0].message.content == " France is Paris."


def test_a_required_tool_is_called_and_its_result_is_read(client: openai.OpenAI, model: str) -> None:
    asked: list[Any] = [{"role": "user", "content": "How is the weather in Paris?"}]
    wanted: dict[str, Any] = {"model": model, "tools": [WEATHER], "temperature": 0, "max_tokens": 60}
    answer = client.chat.completions.create(
        messages=asked, tool_choice="required", parallel_tool_calls=False, **wanted
    ).choices[0]
    assert answer.finish_reason == "tool_calls" and answer.message.content is None
    (call,) = answer.message.tool_calls or []
    assert call.type == "function" and call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Berlin")
    # The client's own accumulation of a stream comes to the same.
    named: Any = {"type": "function", "function": {"name": "get_weather"}}
    with client.chat.completions.stream(messages=asked, tool_choice=named, **wanted) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion().choices[0]
    (streamed,) = final.message.tool_calls or []
    assert streamed.function.arguments == call.function.arguments and streamed.id != call.id
    assert kinds.count("tool_calls.function.arguments.delta") > 2  # as they are written
    assert final.finish_reason == "tool_calls"
    result = {"role": "tool", "tool_call_id": call.id, "content": "It rains."}
    told = client.chat.completions.create(messages=[*asked, answer.message, result], **wanted)
    assert told.choices[0].finish_reason in ("stop", "length", "tool_calls")


def test_the_output_has_the_form_that_is_asked_for(client: openai.OpenAI, model: str) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "city", "strict": True, "schema": CITY}}
    chat = client.chat.completions.create(
        model=model, messages=FRANCE, temperature=0, max_tokens=40, response_format=form
    ).choices[0]
    assert chat.finish_reason == "stop" and json.loads(chat.message.content or "") == {"city": "Paris"}
    completion = client.completions.create(
        model=model, prompt="A city as JSON: ", temperature=0, max_tokens=40, extra_body={"response_format": form}
    ).choices[0]
    assert list(json.loads(completion.text)) == ["city"]


def test_parse_makes_objects_of_what_is_whole(client: openai.OpenAI, model: str) -> None:
    """The client's own reading: an object of the class that was asked for; an exception where the limit cut it off."""
    asked: dict[str, Any] = {"model": model, "messages": FRANCE, "temperature": 0, "response_format": Capital}
    found = client.chat.completions.parse(max_tokens=40, **asked).choices[0].message
    assert found.parsed == Capital(city="Paris")
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(max_tokens=3, **asked)
    with (
        pytest.raises(openai.LengthFinishReasonError),
        client.chat.completions.stream(max_tokens=3, **asked) as stream,
    ):
        stream.until_done()


def test_a_call_that_breaks_off_is_no_finished_call(client: openai.OpenAI, model: str) -> None:
    """By the limit and by a stop sequence, whole and streamed: what there is of it, and the reason of the cut."""
    wanted: dict[str, Any] = {"model": model, "messages": FRANCE, "temperature": 0, "max_tokens": 60}
    wanted |= {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False}
    whole = client.chat.completions.create(**wanted)
    (call,) = whole.choices[0].message.tool_calls or []
    assert call.type == "function" and whole.choices[0].finish_reason == "tool_calls" and whole.usage is not None
    for reason, more in (("length", {"max_tokens": whole.usage.completion_tokens - 10}), ("stop", {"stop": "city"})):
        cut = client.chat.completions.create(**wanted | more).choices[0]
        (begun,) = cut.message.tool_calls or []
        assert cut.finish_reason == reason and begun.type == "function"
        assert call.function.arguments.startswith(begun.function.arguments) and begun.function.arguments != ""
        with pytest.raises(json.JSONDecodeError):
            json.loads(begun.function.arguments)
        with client.chat.completions.stream(**wanted | more) as stream:
            streamed = stream.get_final_completion() if reason == "stop" else None
            if streamed is None:
                stream.until_done()
                streamed = stream.current_completion_snapshot
        assert streamed.choices[0].finish_reason == reason
        (again,) = streamed.choices[0].message.tool_calls or []
        assert again.function.arguments == begun.function.arguments


def test_a_chats_choices_stops_and_token_limits(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=FRANCE, n=2, seed=3, temperature=1, max_tokens=8)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.usage is not None and answer.usage.completion_tokens <= 16
    stopped = client.chat.completions.create(model=model, messages=FRANCE, temperature=0, stop=[" France", "x"])
    assert stopped.choices[0].message.content == "The capital of" and stopped.choices[0].finish_reason == "stop"
    short = client.chat.completions.create(model=model, messages=FRANCE, temperature=0, max_completion_tokens=3)
    assert short.choices[0].finish_reason == "length" and short.choices[0].message.content == "The capital of"


def test_many_streams_of_the_asynchronous_client(demo: Cluster, model: str) -> None:
    async def ask(client: openai.AsyncOpenAI) -> str:
        said = ""
        messages: Any = FRANCE
        async for chunk in await client.chat.completions.create(
            model=model, messages=messages, temperature=0, stream=True
        ):
            said += chunk.choices[0].delta.content or ""
        return said

    async def main() -> list[str]:
        async with openai.AsyncOpenAI(base_url=demo.url + "/v1", api_key="none", timeout=60, max_retries=0) as client:
            return await asyncio.gather(*(ask(client) for _ in range(4)))

    assert asyncio.run(main()) == ["The capital of France is Paris."] * 4
