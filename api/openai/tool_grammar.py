"""The grammar of an answer that has to call a tool, or that may either call one or fit a form. Pure.

llguidance's Lark. A schema stands in it as a document of its own, so what it refers to (`#/$defs/...`) stays in it.
Tags are written as text, which tokens that are tags fit, too.
"""

from collections.abc import Mapping

import orjson

from api.errors import BadField
from api.openai.tools import Style, Tools
from grammar import WHITESPACE
from messages.request import Grammar

MAX_CALLS = 16  # of one answer; weak models never stop by themselves

# Before the name, before the arguments, at the end, and between two calls.
_FORMS = {
    "hermes": ('<tool_call>\n{"name": ', ', "arguments": ', "}\n</tool_call>", "\n"),
    "llama3": ('{"name": ', ', "parameters": ', "}", "; "),
}


def tool_grammar(tools: Tools, style: Style, form: Grammar | None, max_bytes: int) -> Grammar | None:
    """None: any text. `form` is what content has to fit (`response_format`). Raises BadField."""
    if not tools.is_required and form is None:
        return None
    opening, middle, closing, between = _FORMS[style]
    calls = f"call ({_quoted(between)} call){{0,{MAX_CALLS - 1}}}" if tools.is_parallel else "call"
    rules = [f"calls: {calls}", "call: " + " | ".join(f"call_{place}" for place in range(len(tools.callable_names)))]
    for place, name in enumerate(tools.callable_names):
        head = opening + orjson.dumps(name).decode() + middle
        rules.append(f"call_{place}: {_quoted(head)} arguments_{place} {_quoted(closing)}")
        rules.append(f"arguments_{place}: {_json(tools.schema(name))}")
    if tools.is_required or form is None:
        start = "start: calls"
    else:
        start = "start: calls | content"
        rules.append(f"content: {_content(form)}")
    text = "\n".join([start, *rules]) + "\n"
    if len(text.encode()) > max_bytes:
        raise BadField(f"tools make a grammar of {len(text.encode())} bytes, at most {max_bytes} are allowed", "tools")
    return Grammar("lark", text)


def _content(form: Grammar) -> str:
    match form.kind:
        case "json_schema":
            return _json(orjson.loads(form.text))
        case "json_object":
            return _json({"type": "object"})
    raise BadField("tools and a grammar that is no JSON schema cannot be used together", "tools")


def _json(schema: Mapping[str, object]) -> str:
    options = {"whitespace_pattern": WHITESPACE}
    return "%json " + orjson.dumps({**schema, "x-guidance": options}).decode()


def _quoted(text: str) -> str:
    return orjson.dumps(text).decode()
