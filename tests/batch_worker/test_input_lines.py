"""What of a batch's input is accepted, and where its shards begin."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from batch_worker.input_lines import check_lines, lines_from, read_line

ENDPOINT = "/v1/completions"


def raw(custom_id: str = "a", **changes: Any) -> bytes:
    line = {"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": {"prompt": "x"}}
    return json.dumps(line | changes).encode() + b"\n"


def codes(*lines: bytes, **limits: int) -> list[str]:
    bounds = {"shard_lines": 2, "max_lines": 10, "max_bytes": 1000} | limits
    return [problem["code"] for problem in check_lines(lines, ENDPOINT, **bounds).problems]


def test_each_fault_has_its_name() -> None:
    assert codes(raw()) == []
    assert codes() == ["empty_file"] and codes(b"\n", b"  \n") == ["empty_file"]
    assert codes(b"{\n", b"[1]\n") == ["invalid_json_line"] * 2
    assert codes(raw(custom_id="")) == codes(raw(custom_id="x" * 513)) == ["missing_required_parameter"]
    assert codes(raw(method="GET")) == ["invalid_method"]
    assert codes(raw(url="/generate")) == ["mismatched_endpoint"]
    assert codes(raw(body="x")) == ["missing_required_parameter"]
    assert codes(raw(body={"stream": True})) == ["invalid_value"]
    assert codes(raw(), raw()) == ["duplicate_custom_id"]
    assert codes(raw("a"), raw("b"), max_lines=1) == ["too_many_lines"]
    assert codes(raw(), max_bytes=10) == ["line_too_long"]


@given(st.lists(st.sampled_from([b"\n", b" \n", b"line"]), max_size=40), st.integers(1, 5))
def test_the_shards_hold_every_line_once_in_order(kinds: list[bytes], shard_lines: int) -> None:
    lines = [raw(f"line-{number}") if kind == b"line" else kind for number, kind in enumerate(kinds)]
    content = b"".join(lines)
    found = check_lines(lines, ENDPOINT, shard_lines, 100, 1000)
    starts = found.shard_starts
    shards = [
        [read_line(each, ENDPOINT).custom_id for each in lines_from(content[start:end].split(b"\n"))]
        for start, end in zip(starts, [*starts, len(content)][1:], strict=True)
    ]
    expected = [f"line-{number}" for number, kind in enumerate(kinds) if kind == b"line"]
    assert [custom_id for shard in shards for custom_id in shard] == expected
    assert found.total == len(expected)
    assert all(len(shard) == shard_lines for shard in shards[:-1])
