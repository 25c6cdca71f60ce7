"""What a grammar of a request means, and what it may cost: from a request's `Grammar` to a matcher of llguidance.

The API process refuses by it and workers mask by it, so both mean the same. A matcher reads tokens and says which may
come next; its work is counted by llguidance and ends in an error at the limits below, wherever it comes to them. This
file knows no queue, no sequence and no torch; llguidance is loaded by who calls.

Kinds:
    json_schema   JSON that fits the schema, written with at most WHITESPACE between two of its parts
    json_object   any JSON object
    regex         the whole text fits; syntax of Rust's regex crate, without lookaround and \\b
    lark          llguidance's dialect of Lark; the rule `start`
    ebnf          GBNF, as xgrammar and llama.cpp write it (the rule `root`), or Lark
"""

import json
from typing import TYPE_CHECKING, Any

from errors import InvalidRequest
from messages.request import Grammar

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

# A blank, or a line break with an indentation. Where more is allowed, weak models go on with it to their last token.
WHITESPACE = r"( |\n[ \t]{0,24})?"
# RFC 3339 knows a 60th second only where there was a leap second, llguidance in every minute.
SECONDS = {"time": "^.{5}:[0-5]", "date-time": "^.{16}:[0-5]"}
MAX_SCHEMA_DEPTH = 100
_LITERALS = frozenset({"const", "enum", "default", "examples"})
_BY_NAME = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
MAX_REASON_CHARS = 300  # llguidance's errors may quote the grammar


def limits() -> "LLParserLimits":
    """What one matcher may use: a half to a tenth of what llguidance lets pass by itself."""
    from llguidance import LLParserLimits

    return LLParserLimits(
        initial_lexer_fuel=500_000,  # 10 ms of compiling
        step_lexer_fuel=100_000,  # 7 ms of one mask
        step_max_items=20_000,  # 1 ms of one mask
        max_items_in_row=2_000,
        max_lexer_states=20_000,  # of 1 to 2 kB each
        max_grammar_size=100_000,
        verbose_errors=False,  # they would quote what was generated
    )


def compile_grammar(grammar: Grammar, tokenizer: "LLTokenizer") -> "LLMatcher":
    """A matcher at the beginning. Takes a millisecond for most, a tenth of a second at the limits; holds the GIL only
    for kind "ebnf". Raises InvalidRequest with the reason."""
    from llguidance import LLMatcher

    matcher = LLMatcher(tokenizer, _source(grammar), log_level=0, limits=limits())
    check(matcher, grammar)
    return matcher


def is_of_json(grammar: Grammar) -> bool:
    """Whether what is written by it is JSON from its first byte."""
    return grammar.kind in ("json_schema", "json_object")


def check(matcher: "LLMatcher", grammar: Grammar) -> None:
    """Raises InvalidRequest where the matcher has come to an error, which it never leaves."""
    if matcher.is_error():
        raise refusal(grammar, matcher.get_error())


def refusal(grammar: Grammar, reason: str) -> InvalidRequest:
    """The error that tells the client."""
    reason = reason.removesuffix("\n<non-verbose/>").strip()
    if reason == "NoExtensionBias":
        reason = "no text fits it"
    if len(reason) > MAX_REASON_CHARS:
        reason = reason[:MAX_REASON_CHARS] + "..."
    return InvalidRequest(f"{grammar.kind} can not be followed: {reason}")


def _source(grammar: Grammar) -> str:
    """llguidance's own form."""
    from llguidance import LLMatcher, grammar_from

    whitespace = {"whitespace_pattern": WHITESPACE}
    try:
        match grammar.kind:
            case "json_schema":
                return LLMatcher.grammar_from_json_schema(_with_seconds(grammar.text), whitespace)  # type: ignore[arg-type]
            case "json_object":
                return LLMatcher.grammar_from_json_schema('{"type":"object"}', whitespace)  # type: ignore[arg-type]
            case "regex":
                return LLMatcher.grammar_from_regex(grammar.text)
            case "lark":
                return LLMatcher.grammar_from_lark(grammar.text)
            case "ebnf":
                return grammar_from("ebnf", grammar.text)
    except ValueError as error:  # of JSON or GBNF; all else the matcher finds
        raise refusal(grammar, str(error)) from None


def _with_seconds(schema: str) -> str:
    """The schema, its times without a 60th second. What is no schema is left for llguidance to refuse."""
    if '"format"' not in schema:
        return schema
    try:
        return json.dumps(_with_seconds_below(json.loads(schema), MAX_SCHEMA_DEPTH), allow_nan=False)
    except (ValueError, RecursionError):
        return schema


def _with_seconds_below(schema: Any, depth: int) -> Any:
    """Raises ValueError below so many levels."""
    if depth == 0:
        raise ValueError("too deep")
    if isinstance(schema, list):
        return [_with_seconds_below(one, depth - 1) for one in schema]
    if not isinstance(schema, dict):
        return schema
    told = {}
    for key, value in schema.items():
        if key in _BY_NAME and isinstance(value, dict):
            told[key] = {name: _with_seconds_below(one, depth - 1) for name, one in value.items()}
        else:
            told[key] = value if key in _LITERALS else _with_seconds_below(value, depth - 1)
    kind = told.get("format")
    if isinstance(kind, str) and kind in SECONDS:
        if "pattern" not in told:
            told["pattern"] = SECONDS[kind]
        elif isinstance(told.setdefault("allOf", []), list):
            told["allOf"] = [*told["allOf"], {"pattern": SECONDS[kind]}]
    return told
