"""What clients say of the form of their output, in all of its dialects."""

from typing import Any

import pytest

from api.guided import grammar_of_body
from errors import InvalidRequest
from messages.request import Grammar

SCHEMA = {"type": "object", "properties": {"größe": {"type": "integer"}}}
TEXT = '{"type":"object","properties":{"größe":{"type":"integer"}}}'
MAX_BYTES = 200


@pytest.mark.parametrize(
    ("body", "grammar"),
    [
        ({}, None),
        ({"response_format": None, "guided_json": None}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "text"}, "guided_regex": "a+"}, Grammar("regex", "a+")),
        ({"response_format": {"type": "json_object"}}, Grammar("json_object")),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "strict": True, "schema": SCHEMA},
                }
            },
            Grammar("json_schema", TEXT),
        ),
        ({"guided_json": SCHEMA}, Grammar("json_schema", TEXT)),
        ({"guided_json": TEXT}, Grammar("json_schema", TEXT)),
        ({"guided_json": True}, Grammar("json_schema", "{}")),
        ({"guided_choice": ["a", 'b"\n']}, Grammar("lark", 'start: "a" | "b\\"\\n"')),
        ({"guided_grammar": 'root ::= "a"'}, Grammar("ebnf", 'root ::= "a"')),
        ({"structured_outputs": {"json": SCHEMA}}, Grammar("json_schema", TEXT)),
        ({"structured_outputs": {"regex": "a+", "json": None}}, Grammar("regex", "a+")),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, Grammar("lark", 'start: "yes" | "no"')),
        ({"structured_outputs": {"grammar": "start: A"}}, Grammar("ebnf", "start: A")),
        ({"structured_outputs": {"json_object": True}}, Grammar("json_object")),
    ],
)
def test_what_is_meant(body: dict[str, Any], grammar: Grammar | None) -> None:
    assert grammar_of_body(body, MAX_BYTES) == grammar


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"response_format": "json"}, "response_format must be an object, got str"),
        ({"response_format": {}}, "response_format.type must be text, json_object or json_schema, got None"),
        ({"response_format": {"type": "structural_tag"}}, "got 'structural_tag'"),
        ({"response_format": {"type": "json_schema"}}, "must be an object with a schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": [1]}}}, "json_schema.schema must be"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex and response_format can not"),
        ({"guided_json": {}, "guided_regex": "a"}, "guided_json and guided_regex can not be used in same time"),
        ({"guided_choice": []}, "guided_choice must be a list of strings"),
        ({"guided_choice": ["a", ""]}, "none of them empty"),
        ({"guided_choice": "ab"}, "guided_choice must be a list of strings"),
        ({"guided_regex": 5}, "guided_regex must be a string, got int"),
        ({"guided_regex": "ä" * 101}, "guided_regex has 202 bytes, at most 200 are allowed"),
        ({"guided_json": {"enum": ["x" * 200]}}, "guided_json has 213 bytes, at most 200 are allowed"),
        ({"guided_choice": ["x" * 200]}, "at most 200 are allowed"),
        ({"structured_outputs": []}, "structured_outputs must be an object, got list"),
        ({"structured_outputs": {}}, "structured_outputs must say one thing, got 0"),
        ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs must say one thing, got 2"),
        ({"structured_outputs": {"structural_tag": "a"}}, "structured_outputs.'structural_tag' is not known"),
        ({"structured_outputs": {"json_object": False}}, "structured_outputs.'json_object' is not known"),
    ],
)
def test_what_is_refused(body: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        grammar_of_body(body, MAX_BYTES)
    assert words in str(caught.value)


def test_a_schema_that_is_nested_too_deep_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(300):
        schema = {"items": schema}
    with pytest.raises(InvalidRequest, match="guided_json is nested too deep"):
        grammar_of_body({"guided_json": schema}, 1 << 20)
