"""Calls in a text: the same ones however it is cut, and nothing of what is no call is lost."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.openai.tool_parser import Arguments, CallStart, Content, Delta, ToolParser
from messages.request import ToolParams

HERMES = ToolParams("hermes", ("f", "get_weather"))
LLAMA3 = ToolParams("llama3", ("f", "get_weather"))
ONE = ToolParams("hermes", ("f", "get_weather"), is_parallel=False)
F = '{"name": "f", "arguments": {"a": "}{</tool_call>\\"\\\\"}}'
F_ARGUMENTS = '{"a": "}{</tool_call>\\"\\\\"}'
W = '{"name": "get_weather", "parameters": {}}'

# What texts are made of, so that most of them come close to calls.
FRAGMENTS = st.sampled_from(
    [
        *("<tool_call>", "</tool_call>", "<|python_tag|>", "<tool", "<", ">", "\n", " ", ";", "; ", "{", "}", "[", "]"),
        *(
            F,
            W,
            '{"name": "f", "arguments": ',
            '{"name": "nobody", "arguments": {}}',
            '{"a": [1, {"b": 2}]}',
            '"',
            "\\",
        ),
        *('{"arguments": {"x": 1}, "name": "f"}', '{"name": "f"}', "Hello", "größe 🚀", ":", ",", '{"name":'),
    ]
)
TEXTS = st.lists(FRAGMENTS, max_size=12).map("".join)
PARAMS = st.builds(ToolParams, st.sampled_from(["hermes", "llama3"]), st.just(("f", "get_weather")), st.booleans())


def parsed(params: ToolParams, *pieces: str) -> tuple[str, list[tuple[str, str]]]:
    """(content, [(name, arguments)]). The order of the deltas is checked."""
    parser = ToolParser(params)
    deltas: list[Delta] = [delta for piece in pieces for delta in parser.feed(piece)] + parser.end()
    content, calls = "", list[tuple[str, str]]()
    for delta in deltas:
        match delta:
            case Content(text):
                assert text
                content += text
            case CallStart(index, name):
                assert index == len(calls)
                calls.append((name, ""))
            case Arguments(index, text):
                assert text and index == len(calls) - 1
                calls[index] = (name, calls[index][1] + text)
    return content, calls


@given(PARAMS, TEXTS, st.data())
def test_any_cut_gives_the_same(params: ToolParams, text: str, data: st.DataObject) -> None:
    places = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=8)) | {0, len(text)})
    pieces = [text[start:end] for start, end in pairwise(places)]
    assert parsed(params, *pieces) == parsed(params, text) == parsed(params, *text)


@given(PARAMS, TEXTS)
def test_a_text_without_calls_is_content_to_the_letter(params: ToolParams, text: str) -> None:
    content, calls = parsed(params, text)
    if not calls:
        assert content == text
    if not params.is_parallel:
        assert len(calls) <= 1


@given(st.lists(st.tuples(st.sampled_from(HERMES.names), st.dictionaries(st.text(), st.text() | st.integers()))))
def test_every_call_that_is_well_written_is_found(calls: list[tuple[str, dict[str, Any]]]) -> None:
    hermes = "".join(
        f"\n<tool_call>\n{json.dumps({'name': name, 'arguments': given})}\n</tool_call>" for name, given in calls
    )
    llama3 = "; ".join(json.dumps({"name": name, "parameters": given}) for name, given in calls)
    for params, text in ((HERMES, hermes), (LLAMA3, llama3)):
        content, found = parsed(params, *text)
        assert content == ""
        assert [(name, json.loads(arguments)) for name, arguments in found] == calls


@pytest.mark.parametrize(
    ("params", "text", "content", "calls"),
    [
        (HERMES, f"I look.\n<tool_call>\n{F}\n</tool_call>\n", "I look.", [("f", F_ARGUMENTS)]),
        (HERMES, f"<tool_call>[{F}, {W}]</tool_call>", "", [("f", F_ARGUMENTS), ("get_weather", "{}")]),
        (HERMES, f"<tool_call>{F}<tool_call>{W}", "", [("f", F_ARGUMENTS), ("get_weather", "{}")]),  # never closed
        (HERMES, f"<tool_call>{W}}}</tool_call>then", "then", [("get_weather", "{}")]),  # one brace too many
        (HERMES, '<tool_call>{"name": "f", "arguments": {}</tool_call>then', "then", [("f", "{}")]),  # one too few
        (HERMES, '<tool_call>{"arguments": "{\\"x\\": 1}", "name": "f"}</tool_call>', "", [("f", '{"x":1}')]),
        (HERMES, '<tool_call>{"name": "f"}</tool_call>', "", [("f", "{}")]),
        (HERMES, '<tool_call>{"name": "f", "arguments": {"a": [1, ', "", [("f", '{"a": [1, ')]),  # cut by max_tokens
        (HERMES, F, F, []),  # without a tag
        (HERMES, f"<tool_call> look <tool_call>{W}</tool_call>", "<tool_call> look", [("get_weather", "{}")]),
        (LLAMA3, f"\n<|python_tag|>{W}; {F}", "", [("get_weather", "{}"), ("f", F_ARGUMENTS)]),
        (LLAMA3, f"{W}\nDone; bye", "\nDone; bye", [("get_weather", "{}")]),
        (LLAMA3, f"I think {W}", f"I think {W}", []),  # not at the beginning
        (LLAMA3, '{"name": "Ann", "parameters": {}}', '{"name": "Ann", "parameters": {}}', []),
    ],
)
def test_what_models_write(params: ToolParams, text: str, content: str, calls: list[tuple[str, str]]) -> None:
    assert parsed(params, text) == (content, calls)


def test_arguments_come_as_they_are_written() -> None:
    parser = ToolParser(HERMES)
    told = [
        parser.feed(piece) for piece in ("<tool_", 'call>\n{"name": "f", "argu', 'ments": {"a', '": 1', "}}", "\n<")
    ]
    assert told == [
        [],
        [],
        [CallStart(0, "f"), Arguments(0, '{"a')],
        [Arguments(0, '": 1')],
        [Arguments(0, "}")],
        [],
    ]


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>",
        "<tool_call>{",
        '<tool_call>{"name": "nobody", "arguments": {"a": 1}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": 5}</tool_call>',
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "f" "arguments": {}}</tool_call>',
        "<tool_call>\nf(a=1)\n</tool_call> so",
        "a < b <tool_ call>",
    ],
)
def test_a_call_that_is_none_is_content(text: str) -> None:
    assert parsed(HERMES, text) == (text, [])


@pytest.mark.parametrize(
    ("params", "text", "is_whole"),
    [
        (HERMES, f"<tool_call>{F}</tool_call>", True),
        (HERMES, f"<tool_call>{F}</tool_call><tool_call>{W}", True),  # the closing tag says nothing more
        (HERMES, '<tool_call>{"name": "f", "arguments": {}', True),
        (HERMES, '<tool_call>{"arguments": {"x": 1}, "name": "f"}', True),
        (HERMES, f'<tool_call>{F}</tool_call><tool_call>{{"name": "f", "arguments": {{"a"', False),  # the second is cut
        (HERMES, f'<tool_call>{{"name": "f", "arguments": {{"a" oh</tool_call><tool_call>{W}', False),
        (HERMES, '<tool_call>{"name": "f", "arguments": {"a": tru}}</tool_call>', False),  # even braces, no JSON
        (HERMES, "No call.", False),
        (LLAMA3, f"{W}; {F}", True),
        (LLAMA3, f'{W}; {{"name": "f", "parameters": {{"a": "', False),
        (ONE, f'<tool_call>{F}</tool_call><tool_call>{{"name": "f", "arguments": {{"a"', True),  # that is not told
        (ONE, f'<tool_call>{{"name": "f", "arguments": {{"a" oh</tool_call><tool_call>{W}', False),
    ],
)
def test_calls_are_whole_where_all_their_arguments_are_json(params: ToolParams, text: str, is_whole: bool) -> None:
    parser = ToolParser(params)
    parser.feed(text)
    parser.end()
    assert parser.has_whole_calls is is_whole


@given(PARAMS, TEXTS)
def test_whole_calls_can_be_read(params: ToolParams, text: str) -> None:
    parser = ToolParser(params)
    parser.feed(text)
    parser.end()
    _, calls = parsed(params, text)
    assert parser.has_whole_calls == (bool(calls) and all(is_object(arguments) for _, arguments in calls))


def is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except json.JSONDecodeError:
        return False


def test_the_beginning_of_a_required_call_is_no_content() -> None:
    required = ToolParams("hermes", ("f",), is_required=True)
    for text in ("<tool", "<tool_call>\n", '<tool_call>\n{"name": "f", "argu'):
        assert parsed(required, text) == ("", [])
        assert parsed(HERMES, text) == (text, [])  # where none is required nobody can know
    assert parsed(required, '<tool_call>\n{"name": "f", "arguments": {"a') == ("", [("f", '{"a')])
