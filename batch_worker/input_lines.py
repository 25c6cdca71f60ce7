"""What a line of a batch's input says, and what may be wrong with it. Pure.

The format is OpenAI's: one JSON object a line, `{"custom_id", "method": "POST", "url", "body"}`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

MAX_CUSTOM_ID_CHARS = 512
MAX_PROBLEMS = 100  # more are not listed


@dataclass(frozen=True, slots=True)
class Line:
    """One request."""

    custom_id: str
    body: dict[str, Any]


class BadLine(Exception):
    """The line is no request. `code` is for programs, `param` the field at fault."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.param = code, param


def read_line(raw: bytes, endpoint: str) -> Line:
    """The request of a line. Raises BadLine."""
    try:
        said = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadLine("invalid_json_line", f"this line is not JSON: {error}") from None
    if not isinstance(said, dict):
        raise BadLine("invalid_json_line", f"a line must be an object, got {type(said).__name__}")
    custom_id = said.get("custom_id")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MAX_CUSTOM_ID_CHARS:
        wanted = f"custom_id must be a string of 1 to {MAX_CUSTOM_ID_CHARS} characters"
        raise BadLine("missing_required_parameter", wanted, "custom_id")
    if said.get("method") != "POST":
        raise BadLine("invalid_method", f"method must be POST, got {str(said.get('method'))[:40]!r}", "method")
    if said.get("url") != endpoint:
        got = str(said.get("url"))[:80]
        raise BadLine("mismatched_endpoint", f"url must be the batch's endpoint {endpoint}, got {got!r}", "url")
    body = said.get("body")
    if not isinstance(body, dict):
        raise BadLine("missing_required_parameter", "body must be an object", "body")
    if body.get("stream"):
        raise BadLine("invalid_value", "a line of a batch cannot be streamed", "body.stream")
    return Line(custom_id, body)


def is_blank(raw: bytes) -> bool:
    """Whether it counts as no line at all."""
    return not raw.strip()


@dataclass(slots=True)
class Checked:
    """What a look through the whole input came to."""

    total: int = 0
    shard_starts: list[int] = field(default_factory=list)
    problems: list[dict[str, Any]] = field(default_factory=list)


def check_lines(lines: Iterable[bytes], endpoint: str, shard_lines: int, max_lines: int, max_bytes: int) -> Checked:
    """Look through the input; `lines` with their ends. Blank ones are passed over and have no number."""
    found, seen, position = Checked(), set[str](), 0
    for number, raw in enumerate(lines, 1):
        start, position = position, position + len(raw)
        if is_blank(raw):
            continue
        if found.total == max_lines:
            found.problems.append(_problem("too_many_lines", f"more than {max_lines} lines", None, None))
            break
        if found.total % shard_lines == 0:
            found.shard_starts.append(start)
        found.total += 1
        try:
            if len(raw) > max_bytes:
                raise BadLine("line_too_long", f"this line has {len(raw)} bytes, at most {max_bytes} are allowed")
            line = read_line(raw, endpoint)
            if line.custom_id in seen:
                message = f"custom_id {line.custom_id[:80]!r} is on an earlier line too"
                raise BadLine("duplicate_custom_id", message, "custom_id")
            seen.add(line.custom_id)
        except BadLine as error:
            found.problems.append(_problem(error.code, str(error), error.param, number))
            if len(found.problems) == MAX_PROBLEMS:
                break
    if not found.total and not found.problems:
        found.problems.append(_problem("empty_file", "there is no line in the input", None, None))
    return found


def _problem(code: str, message: str, param: str | None, line: int | None) -> dict[str, Any]:
    return {"code": code, "message": message, "param": param, "line": line}


def lines_from(lines: Iterable[bytes], at_most: int | None = None) -> Iterator[bytes]:
    """The lines that count, up to `at_most`."""
    num = 0
    for raw in lines:
        if is_blank(raw):
            continue
        if num == at_most:
            return
        yield raw
        num += 1
