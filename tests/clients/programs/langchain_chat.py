"""langchain-openai against a server of OpenAI's API: `langchain_chat.py URL MODEL`."""

import asyncio
import sys
from typing import Literal

import openai
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel, ConfigDict

QUESTION = "What is the capital of France?"


class Capital(BaseModel):
    """The capital of a country."""

    model_config = ConfigDict(extra="forbid")
    city: Literal["Paris", "Berlin"]


@tool
def get_weather(city: Literal["Paris", "Berlin"]) -> str:
    """The weather of a city."""
    return f"It rains in {city}."


def main(url: str, model: str) -> None:
    """Every way in which a chain asks."""
    chat = ChatOpenAI(base_url=url + "/v1", api_key="none", model=model, temperature=0, max_tokens=60, max_retries=0)
    whole = chat.invoke(QUESTION)
    assert whole.content == "The capital of France is Paris.", whole
    assert whole.usage_metadata["output_tokens"] > 0, whole

    streamed = None
    for chunk in chat.stream(QUESTION, stream_usage=True):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed.content == whole.content, streamed
    assert streamed.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"], streamed

    for method in ("json_schema", "function_calling"):
        found = chat.with_structured_output(Capital, method=method).invoke(QUESTION)
        assert isinstance(found, Capital), (method, found)

    bound = chat.bind_tools([get_weather], tool_choice="any", parallel_tool_calls=False)
    asked = HumanMessage("How is the weather in Paris?")
    called = bound.invoke([asked])
    (call,) = called.tool_calls
    assert call["name"] == "get_weather" and not called.invalid_tool_calls, called
    streamed = None
    for chunk in bound.stream([asked]):
        streamed = chunk if streamed is None else streamed + chunk
    assert [one["args"] for one in streamed.tool_calls] == [call["args"]], streamed
    result = ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"])
    assert chat.bind_tools([get_weather]).invoke([asked, called, result]).content is not None

    cut = bound.invoke([asked], max_tokens=called.usage_metadata["output_tokens"] - 10)
    assert cut.response_metadata["finish_reason"] == "length" and not cut.tool_calls, cut
    assert [one["name"] for one in cut.invalid_tool_calls] == ["get_weather"], cut

    assert chat.invoke(QUESTION, stop=[" is"]).content == "The capital of France"
    listed = chat.bind(logprobs=True, top_logprobs=2).invoke(QUESTION).response_metadata["logprobs"]["content"]
    assert "".join(one["token"] for one in listed).startswith(whole.content), listed
    assert all(len(one["top_logprobs"]) == 2 for one in listed), listed
    sampling = chat.model_copy(update={"n": 2, "temperature": 1, "seed": 1})
    (several,) = sampling.generate([[HumanMessage(QUESTION)]]).generations
    assert len(several) == 2, several
    try:
        chat.invoke(QUESTION, temperature=-1)
    except openai.BadRequestError as error:
        assert error.param == "temperature", error
    else:
        raise AssertionError("temperature -1 was taken")

    async def at_once() -> list[str]:
        return [one.content for one in await chat.abatch([QUESTION] * 3)]

    assert asyncio.run(at_once()) == [whole.content] * 3

    completions = OpenAI(base_url=url + "/v1", api_key="none", model=model, temperature=0, max_tokens=13, max_retries=0)
    prompts = ["What is AI?", "The capital of France is"]
    both = [one[0].text for one in completions.generate(prompts).generations]  # one request of two prompts
    assert both[0] == " AI refers to machines that can perform tasks that typically require human intelligence", both
    assert "".join(completions.stream(prompts[1])) == both[1], both


if __name__ == "__main__":
    main(*sys.argv[1:])
