"""Grammars that are meant to cost a server dearly, by name."""

from typing import Any

import orjson

from messages.request import Grammar


def _schema(schema: Any) -> Grammar:
    return Grammar("json_schema", orjson.dumps(schema).decode())


def _nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def _combined(count: int) -> dict[str, Any]:
    """count ** 4 objects."""
    return {"allOf": [{"anyOf": [{"properties": {f"{i} {j}": {}}} for j in range(4)]} for i in range(count)]}


_CIRCLE = {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}
_BEYOND_LARK = "start: " + " ".join(f"r{i}" for i in range(900)) + "".join(f'\nr{i}: "a"{{1,500}}' for i in range(900))

# Those that no text fits, or that nobody can follow within the limits.
REFUSED = {
    "nested parentheses": Grammar("regex", "(" * 3000 + "a" + ")" * 3000),
    "lookahead": Grammar("regex", "(?=a+b)(?=.*c).*"),
    "backreference": Grammar("regex", r"(a+)+\1"),
    "a text without end": Grammar("lark", 'start: "a" start'),
    "a reference to itself": _schema({"$ref": "#"}),
    "a circle of references": _schema({"$defs": _CIRCLE, "$ref": "#/$defs/a"}),
    "a circle of parts": _schema({"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}, {}]}}, "$ref": "#/$defs/a"}),
    "a reference to another host": _schema({"$ref": "http://127.0.0.1:1/schema.json"}),
    "a reference to a file": _schema({"$ref": "file:///etc/passwd"}),
    "deeper than JSON may be": _schema(_nested(120)),
    "5 ** 4 objects": _schema(_combined(5)),
    "9 ** 4 objects": _schema(_combined(9)),
    "many optional properties": _schema({"type": "object", "properties": {f"p{i}": {} for i in range(1500)}}),
    "many rules": Grammar("lark", _BEYOND_LARK),
    "overlapping names": _schema({"patternProperties": {f"^(a|b)*a(a|b){{{i}}}$": {} for i in range(20)}}),
    "brackets of GBNF": Grammar("ebnf", "root ::= " + "(" * 9000),
    "brackets of Lark": Grammar("lark", "start: " + "(" * 9000),
}
# Those that cost little, however they look, or end in an error once they cost too much.
HARMLESS = {
    "nested repetitions": Grammar("regex", "((((a{1,100}){1,100}){1,100}){1,100})"),
    "repetitions beyond any size": Grammar("regex", "(a{1,99999999}){1,99999999}"),
    "an object that holds itself": _schema(
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"], "additionalProperties": False}
    ),
    "nested stars": Grammar("regex", "(" * 20 + "a*" + ")*" * 20),
    "any text, often": Grammar("regex", "(.{0,1000}x){0,1000}"),
    "many states": Grammar("regex", ".*a.{30}"),
    "more states": Grammar("regex", "(.*a.{18}|.*b.{18}|.*c.{18})"),
    "a thousand values": _schema({"enum": [f"value {i * 7919 % 100003}" for i in range(1000)]}),
    "a million items": _schema({"type": "array", "minItems": 1000000, "maxItems": 1000000}),
    "ambiguous rules": Grammar("lark", 'start: e\ne: e e | "a" | e e e | '),
}
