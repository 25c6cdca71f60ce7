"""What a client says of the form of its output -> a Grammar: LightLLM's parameters, OpenAI's response_format and
vLLM's extensions of it. Pure; whether the grammar can be followed is grammar_check.py's to find out.
"""

from collections.abc import Mapping

import orjson

from errors import InvalidRequest
from messages.request import Grammar

PARAMETERS = ("regular_constraint", "guided_grammar", "guided_json")
EXTENSIONS = ("guided_json", "guided_regex", "guided_choice", "guided_grammar")  # vLLM's until 0.12
# vLLM's `structured_outputs` of today, with the name above that means the same.
STRUCTURED_OUTPUTS = {
    "json": "guided_json",
    "regex": "guided_regex",
    "choice": "guided_choice",
    "grammar": EXTENSIONS[3],
}

Raw = Mapping[str, object]


def grammar_of_parameters(given: Raw, max_bytes: int) -> Grammar | None:
    """Of LightLLM's `parameters`. Raises InvalidRequest."""
    names = [name for name in PARAMETERS if given.get(name)]
    if not names:
        return None
    (name, *others) = names
    if others:
        raise InvalidRequest(f"{name} and {others[0]} can not be used in same time")
    value = given[name]
    if name == "guided_json":
        return _schema(name, value, max_bytes)
    return _text("regex" if name == "regular_constraint" else "ebnf", name, value, max_bytes)


def grammar_of_body(body: Raw, max_bytes: int) -> Grammar | None:
    """Of a body of OpenAI's routes: `response_format`, `structured_outputs`, `guided_*`. Raises InvalidRequest."""
    found = {name: body[name] for name in EXTENSIONS if body.get(name) is not None}
    grammars = [_extension(name, name, value, max_bytes) for name, value in found.items()]
    names = list(found)
    outputs = body.get("structured_outputs")
    if outputs is not None:
        grammars.append(_structured_outputs(outputs, max_bytes))
        names.append("structured_outputs")
    response_format = body.get("response_format")
    if response_format is not None:
        grammar = _response_format(response_format, max_bytes)
        if grammar is not None:
            grammars.append(grammar)
            names.append("response_format")
    if len(names) > 1:
        raise InvalidRequest(f"{names[0]} and {names[1]} can not be used in same time")
    return grammars[0] if grammars else None


def _response_format(value: object, max_bytes: int) -> Grammar | None:
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"response_format must be an object, got {type(value).__name__}")
    match value.get("type"):
        case "text":
            return None
        case "json_object":
            return Grammar("json_object")
        case "json_schema":
            named = value.get("json_schema")
            if not isinstance(named, Mapping) or named.get("schema") is None:
                raise InvalidRequest("response_format.json_schema must be an object with a schema")
            return _schema("response_format.json_schema.schema", named["schema"], max_bytes)
    raise InvalidRequest(
        f"response_format.type must be text, json_object or json_schema, got {_shown(value.get('type'))}"
    )


def _structured_outputs(value: object, max_bytes: int) -> Grammar:
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"structured_outputs must be an object, got {type(value).__name__}")
    names = [name for name in value if value[name] is not None]
    if len(names) != 1:
        raise InvalidRequest(f"structured_outputs must say one thing, got {len(names)}")
    (name,) = names
    if name == "json_object" and value[name] is True:
        return Grammar("json_object")
    if name not in STRUCTURED_OUTPUTS:
        known = ", ".join([*STRUCTURED_OUTPUTS, "json_object"])
        raise InvalidRequest(f"structured_outputs.{_shown(name)} is not known; it may be one of {known}")
    return _extension(STRUCTURED_OUTPUTS[name], f"structured_outputs.{name}", value[name], max_bytes)


def _extension(kind: str, name: str, value: object, max_bytes: int) -> Grammar:
    """`kind` is one of EXTENSIONS, `name` what the client called it."""
    if kind == "guided_json":
        return _schema(name, value, max_bytes)
    if kind == "guided_choice":
        if not isinstance(value, list) or not value or not all(isinstance(choice, str) and choice for choice in value):
            raise InvalidRequest(f"{name} must be a list of strings, none of them empty")
        lark = "start: " + " | ".join(orjson.dumps(choice).decode() for choice in value)
        return _text("lark", name, lark, max_bytes)
    return _text("regex" if kind == "guided_regex" else "ebnf", name, value, max_bytes)


def _schema(name: str, value: object, max_bytes: int) -> Grammar:
    """A schema, or the text of one. Compact, so that equal schemas are compiled once."""
    if isinstance(value, str):
        _check_size(name, value.encode(), max_bytes)
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError as error:
            raise InvalidRequest(f"{name} must be a JSON schema: {error}") from None
    if value is True:
        value = {}  # both fit everything
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"{name} must be a JSON schema, an object, got {type(value).__name__}")
    try:
        text = orjson.dumps(value)
    except orjson.JSONEncodeError:  # of what came as JSON there is one reason
        raise InvalidRequest(f"{name} is nested too deep") from None
    _check_size(name, text, max_bytes)
    return Grammar("json_schema", text.decode())


def _text(kind: str, name: str, value: object, max_bytes: int) -> Grammar:
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} must be a string, got {type(value).__name__}")
    _check_size(name, value.encode(), max_bytes)
    return Grammar(kind, value)  # type: ignore[arg-type]


def _check_size(name: str, text: bytes, max_bytes: int) -> None:
    if len(text) > max_bytes:
        raise InvalidRequest(f"{name} has {len(text)} bytes, at most {max_bytes} are allowed")


def _shown(value: object) -> str:
    return repr(value)[:80]
