"""Tools of a chat: what is asked of the model, what of its text is a call, and how both are refused."""

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from llguidance import LLTokenizer

from api.errors import BadField
from api.openai.chat_template import ChatTemplate
from api.openai.tool_grammar import tool_grammar
from api.openai.tool_parser import ToolParser
from api.openai.tools import Style, read_tools
from grammar import compile_grammar
from messages.request import Grammar, ToolParams
from messages.token_event import FinishReason
from settings.loading import Settings
from tests.api.fake_cluster import FakeCluster, fake_cluster, run
from tests.api.openai.test_chat_template import rendered
from tests.api.openai.test_chunks import choice_of, chunks_of

CHAT = "/v1/chat/completions"
CITY: dict[str, Any] = {"type": "object", "properties": {"city": {"$ref": "#/$defs/City"}}, "required": ["city"]}
CITY |= {"additionalProperties": False, "$defs": {"City": {"enum": ["Bonn", 'Bad "Ems"']}}}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Of a city.", "parameters": CITY}}
CLOCK = {"type": "function", "function": {"name": "clock"}}
ASKED: dict[str, Any] = {
    "messages": [{"role": "user", "content": "What is AI?"}],
    "tools": [WEATHER, CLOCK],
    "max_tokens": 400,
}
NAMED = {"type": "function", "function": {"name": "clock"}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bonn"}}\n</tool_call>'
OTHER = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
FORM = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "required": ["ok"]}}}


@contextlib.asynccontextmanager
async def tool_cluster(settings: Settings) -> AsyncIterator[FakeCluster]:
    """Of a model whose template knows tools."""
    async with fake_cluster(settings) as cluster:
        source = (
            "{% for tool in tools or [] %}{{ tool.function.name }} <tool_call>{% endfor %}{{ messages[0].content }}"
        )
        cluster.services.chat.template = ChatTemplate(source, {})
        yield cluster


async def both(
    cluster: FakeCluster, text: str, reason: FinishReason = FinishReason.STOP, **more: Any
) -> tuple[Any, Any]:
    """(choice of the whole answer, its deltas put together) of a model that writes `text`."""
    cluster.script = cluster.length_script(text, reason)
    headers = {"X-Request-Id": f"r{len(cluster.requests)}"}
    answer = await cluster.post(CHAT, ASKED | more, headers=headers)
    assert answer.status_code == 200, answer.text
    streamed = await cluster.post(CHAT, ASKED | more | {"stream": True})
    (choice,) = answer.json()["choices"]
    message: dict[str, Any] = {"content": "", "calls": []}
    for chunk in chunks_of(streamed.text):
        delta = choice_of(chunk)["delta"]
        message["content"] += delta.get("content", "")
        for call in delta.get("tool_calls", []):
            if "id" in call:
                assert call["index"] == len(message["calls"]) and call["type"] == "function"
                message["calls"].append({"id": call["id"], "name": call["function"]["name"], "arguments": ""})
            message["calls"][call["index"]]["arguments"] += call["function"]["arguments"]
    message["finish_reason"] = choice_of(chunks_of(streamed.text)[-1])["finish_reason"]
    return choice, message


def test_calls_are_told_whole_and_in_pieces(chatty: Settings) -> None:
    async def main() -> None:
        async with tool_cluster(chatty) as cluster:
            whole, streamed = await both(cluster, f"Let me see.\n{CALL}\n{OTHER}")
            assert whole["finish_reason"] == streamed["finish_reason"] == "tool_calls"
            assert whole["message"]["content"] == streamed["content"] == "Let me see."
            first, second = whole["message"]["tool_calls"]
            assert first["function"] == {"name": "weather", "arguments": '{"city": "Bonn"}'}
            assert second["function"] == {"name": "clock", "arguments": "{}"} and second["type"] == "function"
            assert [(call["name"], call["arguments"]) for call in streamed["calls"]] == [
                ("weather", '{"city": "Bonn"}'),
                ("clock", "{}"),
            ]
            ids = [call["id"] for call in (first, second, *streamed["calls"])]
            assert len(set(ids)) == 4 and all(one.startswith("call_") for one in ids)
            alone, _ = await both(cluster, CALL)
            assert alone["message"]["content"] is None

    run(main())


def test_what_is_no_call_stays_content(chatty: Settings) -> None:
    async def main() -> None:
        async with tool_cluster(chatty) as cluster:
            for text in ("No tools here. ", CALL.replace("weather", "whether"), CALL.replace("{", "(")):
                whole, streamed = await both(cluster, text)
                assert whole["message"] == {"role": "assistant", "content": text, "refusal": None}
                assert (streamed["content"], streamed["calls"]) == (text, [])
                assert whole["finish_reason"] == streamed["finish_reason"] == "stop"
            # Nothing may be called: a call is text, and the template hears of no tools.
            whole, _ = await both(cluster, CALL, tool_choice="none", spaces_between_special_tokens=False)
            assert whole["message"]["content"] == CALL
            prompt = cluster.services.tokenizer.text(cluster.requests[-1].prompt_token_ids, skip_special_tokens=False)
            assert "weather" not in prompt
            one, _ = await both(cluster, f"{CALL}{OTHER}", parallel_tool_calls=False)
            assert len(one["message"]["tool_calls"]) == 1

    run(main())


def test_calls_that_break_off_are_not_to_be_carried_out(chatty: Settings) -> None:
    """What there is of them is told; the reason is that of the end, as OpenAI's is, and not `tool_calls`."""

    async def main() -> None:
        async with tool_cluster(chatty) as cluster:
            arguments = '{"city": "Bo'
            cut = CALL[: CALL.index("nn")]
            for reason in (FinishReason.LENGTH, FinishReason.STOP):
                for text in (cut, f"{OTHER}\n{cut}"):
                    whole, streamed = await both(cluster, text, reason)
                    assert whole["finish_reason"] == streamed["finish_reason"] == str(reason)
                    assert whole["message"]["tool_calls"][-1]["function"]["arguments"] == arguments
                    assert streamed["calls"][-1]["arguments"] == arguments
                    assert (whole["message"]["content"], streamed["content"]) == (None, "")
            # A whole call at the limit: more might have come.
            whole, streamed = await both(cluster, CALL, FinishReason.LENGTH)
            assert whole["finish_reason"] == streamed["finish_reason"] == "length"
            for required in ("required", NAMED):
                whole, streamed = await both(
                    cluster, CALL[:20], FinishReason.LENGTH, tool_choice=required, max_tokens=20
                )
                assert (whole["message"]["content"], streamed["content"]) == ("", "")
                assert "tool_calls" not in whole["message"] and streamed["calls"] == []

    run(main())


def test_logprobs_go_with_the_tokens(chatty: Settings) -> None:
    async def main() -> None:
        async with tool_cluster(chatty) as cluster:
            cluster.script = cluster.length_script(CALL, FinishReason.STOP)
            streamed = await cluster.post(CHAT, ASKED | {"stream": True, "logprobs": True})
            listed = [choice_of(chunk)["logprobs"] for chunk in chunks_of(streamed.text)]
            tokens = [row["token"] for one in listed if one is not None for row in one["content"]]
            assert "".join(tokens) == CALL

    run(main())


def test_a_choice_that_must_be_held_to_becomes_a_grammar(chatty: Settings) -> None:
    async def main() -> None:
        async with tool_cluster(chatty) as cluster:
            for more, has_grammar in (
                ({}, False),
                ({"tool_choice": "auto"}, False),
                ({"tool_choice": "required"}, True),
                ({"tool_choice": NAMED}, True),
                ({"response_format": FORM}, True),
            ):
                await both(cluster, CALL, **more)
                assert (cluster.requests[-1].sampling.grammar is not None) is has_grammar, more
                assert cluster.requests[-1].answer.tools is not None

    run(main())


def fits(grammar: Grammar, text: str) -> bool:
    """Whether the whole text may be written."""
    matcher = compile_grammar(grammar, LLTokenizer("byte"))
    return all(matcher.consume_token(byte) for byte in text.encode()) and matcher.is_accepting()


def grammar_of(style: Style = "hermes", form: Grammar | None = None, **more: Any) -> Grammar:
    tools = read_tools(ASKED | more)
    assert tools is not None
    grammar = tool_grammar(tools, style, form, 1 << 15)
    assert grammar is not None
    return grammar


def test_required_means_one_call_or_more_that_fit() -> None:
    grammar = grammar_of(tool_choice="required")
    ems = CALL.replace('"Bonn"', json.dumps('Bad "Ems"'))
    for text in (CALL, OTHER, f"{CALL}\n{OTHER}", ems):
        assert fits(grammar, text), text
        parser = ToolParser(ToolParams("hermes", ("weather", "clock")))
        assert parser.feed(text) and parser.num_calls == text.count("<tool_call>")
    for text in ("", "Hello", CALL.replace("Bonn", "Rome"), CALL.replace("weather", "wealth"), f"{CALL}\n"):
        assert not fits(grammar, text), text
    assert not fits(grammar_of(tool_choice="required", parallel_tool_calls=False), f"{CALL}\n{OTHER}")
    named = grammar_of(tool_choice=NAMED)
    assert fits(named, OTHER) and not fits(named, CALL)
    llama3 = grammar_of("llama3", tool_choice="required")
    assert fits(llama3, '{"name": "weather", "parameters": {"city": "Bonn"}}; {"name": "clock", "parameters": {}}')


def test_with_a_form_either_it_or_a_call_is_written() -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    grammar = grammar_of(form=Grammar("json_schema", json.dumps(schema)))
    assert fits(grammar, CALL) and fits(grammar, '{"ok": true}')
    assert not fits(grammar, '{"ok": 1}') and not fits(grammar, "Hello")
    assert fits(grammar_of(form=Grammar("json_object")), '{"x": 1}')
    with pytest.raises(BadField, match="no JSON schema"):
        grammar_of(form=Grammar("regex", "a"))


def test_tools_are_too_many_for_a_grammar() -> None:
    tools = read_tools(ASKED | {"tool_choice": "required"})
    assert tools is not None
    with pytest.raises(BadField, match="at most 100 are allowed"):
        tool_grammar(tools, "hermes", None, 100)


@pytest.mark.parametrize(
    ("param", "more"),
    [
        ("tools", {"tools": {"type": "function"}}),
        ("tools", {"tools": [{}]}),
        ("tools", {"tools": [{"type": "function", "function": {"name": "two words"}}]}),
        ("tools", {"tools": [{"type": "function", "function": {"name": "f", "parameters": "{}"}}]}),
        ("tools", {"tools": [CLOCK, CLOCK]}),
        ("tools", {"tools": [CLOCK] * 129}),
        ("tool_choice", {"tools": [], "tool_choice": "required"}),
        ("tool_choice", {"tool_choice": "any"}),
        ("tool_choice", {"tool_choice": {"type": "function", "function": {"name": "nobody"}}}),
        ("parallel_tool_calls", {"parallel_tool_calls": "no"}),
    ],
)
def test_tools_that_are_none_are_refused(param: str, more: dict[str, Any]) -> None:
    with pytest.raises(BadField) as refused:
        read_tools(ASKED | more)
    assert refused.value.param == param


def test_templates_get_the_tools_and_past_calls_as_objects() -> None:
    past = {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function", "function": {}}]}
    past["tool_calls"][0]["function"] = {"name": "weather", "arguments": '{"city": "Bonn"}'}  # type: ignore[index]
    result = {"role": "tool", "tool_call_id": "c", "content": "rain"}
    source = (
        "{% for tool in tools or [] %}{{ tool.function.name }},{% endfor %}"
        "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.function.arguments.city }}{% endfor %}"
        "{{ m.content or '' }};{% endfor %}"
    )
    messages = [*ASKED["messages"], past, result]
    assert rendered(source, messages=messages, tools=[WEATHER, CLOCK]) == "weather,clock,What is AI?;Bonn;rain;"
    assert rendered(source, messages=messages) == "What is AI?;Bonn;rain;"


def test_a_template_without_tools_gets_them_in_words() -> None:
    source = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    call = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bonn"}'}}
    past = [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "c", "content": "rain"}]
    told = rendered(source, messages=past, tools=[CLOCK])
    assert told.startswith("[system]# Tools") and '{"name":"clock"}' in told and "<tool_call>" in told
    assert told.endswith(
        '[assistant]<tool_call>\n{"name":"weather","arguments":{"city":"Bonn"}}\n</tool_call>'
        "[user]<tool_response>\nrain\n</tool_response>"
    )
    system = {"role": "system", "content": "Be brief."}
    assert rendered(source, messages=[system, *past], tools=[CLOCK]).startswith("[system]Be brief.\n\n# Tools")


@pytest.mark.parametrize(
    ("source", "style"),
    [
        (None, "hermes"),
        ("{{ messages }}", "hermes"),
        ("{{ tools }} <tool_call>", "hermes"),
        ('{{ tools }} {"name": function name, "parameters": dictionary}', "llama3"),
        ("{{ tools }} <|python_tag|>", "llama3"),
        ("{{ tools }} [TOOL_CALLS]", None),
    ],
)
def test_the_style_is_the_templates(source: str | None, style: Style | None) -> None:
    assert ChatTemplate(source, {}).tool_style == style


def test_a_style_that_is_not_known_can_still_be_held_to(chatty: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(chatty, takes_jobs=False) as cluster:
            cluster.services.chat.template = ChatTemplate("{{ tools }} [TOOL_CALLS]", {})
            refused = await cluster.post(CHAT, ASKED)
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tools")
            assert "PDQ_API__TOOL_STYLE" in refused.json()["error"]["message"]

    run(main())
