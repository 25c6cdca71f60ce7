"""OpenAI's completions as servers stream them, with and without a count in each chunk."""

import asyncio
from pathlib import Path

import orjson
import pytest

from bench.http_stream import resolve
from bench.load import Load, run_workload
from bench.openai_style import OpenAIStyle
from bench.options import StyleName, wire_style
from bench.prompts import PromptSource
from bench.record import RequestRecord
from bench.report import Limits, Summary, summarize
from bench.wire_style import BadFrame, Frame
from bench.workload import Concurrency, Group, Workload
from errors import ConfigError
from tests.bench.scripted_server import Script, Server, scripted_server

STYLE = OpenAIStyle("m")
GROUP = Group("all", Concurrency(2), prompt_tokens=20, output_tokens=6, num_requests=4)


def run(script: Script, style: OpenAIStyle = STYLE) -> tuple[list[RequestRecord], Summary, Server]:
    async def main() -> tuple[list[RequestRecord], Summary, Server]:
        async with scripted_server(lambda index: script) as server:
            load = Load(await resolve(server.url, style.PATH), style, PromptSource(1), 30.0)
            outcome = await run_workload(load, Workload("test", (GROUP,)), 0, lambda record: None)
            return outcome.records, summarize(GROUP, outcome.records, outcome.start_s, Limits(1000, 60)), server

    return asyncio.run(main())


def test_request_asks_for_an_exact_greedy_answer_to_token_ids() -> None:
    body = orjson.loads(OpenAIStyle("m").build_request([5, 6, 7], 128))
    assert body["model"] == "m"
    assert body["prompt"] == [5, 6, 7]
    assert (body["max_tokens"], body["min_tokens"], body["ignore_eos"]) == (128, 128, True)
    assert (body["temperature"], body["stream"], body["cache_prompt"]) == (0, True, False)
    assert body["stream_options"]["include_usage"] is True


def test_extra_fields_are_put_in_and_taken_out() -> None:
    body = orjson.loads(OpenAIStyle("m", {"min_tokens": None, "top_k": 1}).build_request([5], 8))
    assert "min_tokens" not in body
    assert body["top_k"] == 1


def test_servers_that_take_text_get_text() -> None:
    style = OpenAIStyle("m", text_of=lambda ids: " ".join(map(str, ids)))
    assert orjson.loads(style.build_request([5, 6], 8))["prompt"] == "5 6"
    # Their own count of it is another: it is no error.
    assert style.parse_frame(b'{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":8}}') == Frame(8)


def test_a_chunk_with_continuous_usage() -> None:
    payload = (
        b'{"id":"c","choices":[{"index":0,"text":" a","finish_reason":null}],'
        b'"usage":{"prompt_tokens":3,"total_tokens":5,"completion_tokens":2}}'
    )
    assert STYLE.parse_frame(payload) == Frame(2, 3, text=" a")


def test_a_chunk_with_llama_cpps_timings() -> None:
    payload = b'{"choices":[{"text":" a","index":0,"finish_reason":null}],"timings":{"prompt_n":3,"predicted_n":2}}'
    assert STYLE.parse_frame(payload) == Frame(2, text=" a")


def test_the_last_chunk_the_usage_and_done() -> None:
    last = b'{"choices":[{"text":"","finish_reason":"length"}],"usage":null}'
    assert STYLE.parse_frame(last) == Frame(finish_reason="length")
    usage = b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":128}}'
    assert STYLE.parse_frame(usage) == Frame(128, 3)
    assert STYLE.parse_frame(b"[DONE]") == Frame(is_end=True)


@pytest.mark.parametrize("payload", [b'{"error":{"message":"gone","code":400}}', b'{"error":"gone"}'])
def test_error_frame(payload: bytes) -> None:
    assert STYLE.parse_frame(payload) == Frame(error="gone")


@pytest.mark.parametrize("payload", [b"", b"{", b"{}", b"3", b"[]", b'{"choices":[{},{}]}', b'{"choices":3}'])
def test_other_bytes_are_bad_frames(payload: bytes) -> None:
    with pytest.raises(BadFrame):
        STYLE.parse_frame(payload)


@pytest.mark.parametrize("counts_by", ["usage", "timings", "end", "nothing"])
def test_a_token_a_chunk_is_counted_whatever_says_so(counts_by: str) -> None:
    records, summary, server = run(Script(counts_by=counts_by))
    assert [record.failure for record in records] == [None] * 4
    assert summary.output_tokens == 24
    assert summary.untimed_output_tokens == 0
    assert server.heads[0].startswith("POST /v1/completions HTTP/1.1\r\n")


@pytest.mark.parametrize("counts_by", ["usage", "timings"])
def test_tokens_that_come_in_one_chunk_are_counted_by_its_count(counts_by: str) -> None:
    records, summary, _ = run(Script(counts_by=counts_by, tokens_per_chunk=3))
    assert [record.failure for record in records] == [None] * 4
    assert summary.untimed_output_tokens == 0
    for record in records:
        assert len(set(record.arrivals_s[:3])) == 1
        assert len(record.arrivals_s) == 6


def test_tokens_without_a_chunk_of_their_own_come_with_the_last_one_and_are_told() -> None:
    records, summary, _ = run(Script(counts_by="end", tokens_per_chunk=3))
    assert [record.failure for record in records] == [None] * 4
    assert summary.output_tokens == 24
    assert summary.untimed_output_tokens == 16  # 4 of the 6 of each request
    for record in records:
        assert len(record.arrivals_s) == 6
        assert len(set(record.arrivals_s[1:])) == 1  # the second chunk's, which was the last


def test_too_few_chunks_and_no_count_is_a_short_output() -> None:
    records, _, _ = run(Script(counts_by="nothing", tokens_per_chunk=3))
    assert {record.failure.kind for record in records if record.failure} == {"short_output"}


def test_a_wrong_count_of_the_prompt_is_a_failure() -> None:
    records, _, _ = run(Script(prompt_tokens=19))
    assert {record.failure.kind for record in records if record.failure} == {"wrong_prompt_tokens"}


def test_a_stream_without_done_is_cut_and_one_without_a_reason_is_no_success() -> None:
    chunk = b'data: {"choices":[{"text":"x"}],"usage":{"prompt_tokens":20,"completion_tokens":6}}\n\n'
    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n"
    records, _, _ = run(Script(raw=head % len(chunk) + chunk))
    assert {record.failure.kind for record in records if record.failure} == {"cut_stream"}
    whole = chunk + b"data: [DONE]\n\n"
    records, _, _ = run(Script(raw=head % len(whole) + whole))
    assert {record.failure.kind for record in records if record.failure} == {"finish_none"}


def test_options_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--model"):
        wire_style(StyleName.OPENAI)
    with pytest.raises(ConfigError, match="--style openai"):
        wire_style(StyleName.LIGHTLLM, model="m")
    with pytest.raises(ConfigError, match="--extra-body"):
        wire_style(StyleName.OPENAI, "m", "{")
    with pytest.raises(ConfigError, match="JSON object"):
        wire_style(StyleName.OPENAI, "m", "[1]")
    with pytest.raises(ConfigError, match="--tokenizer"):
        wire_style(StyleName.OPENAI, "m", tokenizer=tmp_path / "none.json")
    assert wire_style(StyleName.OPENAI, "m", '{"top_k": 1}') == OpenAIStyle("m", {"top_k": 1})
