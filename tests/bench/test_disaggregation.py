"""The traces of the local prefill bench, conversations that grow by their answers, and the table."""

import asyncio
from typing import Any

import orjson
import pytest

from bench import lightllm_style
from bench.disaggregation import conversations
from bench.disaggregation.__main__ import POLICIES, Scale, Score, rows_of
from bench.disaggregation.conversations import Run, converse, run_closed, run_open
from bench.disaggregation.traces import TRACES, Trace, starts_s
from bench.http_stream import Target
from bench.load import Load
from bench.prompts import PromptSource
from bench.record import RequestRecord
from bench.report import Limits
from bench.wire_style import Frame

LOAD = Load(Target("127.0.0.1", 1, "", ""), lightllm_style, PromptSource(1), 1.0)
TALK = Trace("talk", 4, 2, num_turns=3)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The prompts that were sent. Every answer is the tokens 7 and 8."""
    prompts: list[list[int]] = []

    async def answer(load: Load, group: Any, index: int, body: bytes, on_frame: Any) -> RequestRecord:
        prompts.append(orjson.loads(body)["inputs"])
        for token_id in (7, 8):
            on_frame(Frame(token_id=token_id))
        await asyncio.sleep(0)
        return RequestRecord(group.name, index, group.prompt_tokens, 2, 0.0, None, [0.1, 0.2], 0.2, "length")

    monkeypatch.setattr(conversations, "send_request", answer)
    return prompts


def test_a_turn_is_all_that_was_said_and_something_new(asked: list[list[int]]) -> None:
    records: list[RequestRecord] = []
    asyncio.run(converse(LOAD, TALK, "c", records))
    first, second, third = asked
    assert [len(prompt) for prompt in asked] == [4, 10, 16] == [record.prompt_tokens for record in records]
    assert second[:6] == [*first, 7, 8] and third[:12] == [*second, 7, 8]
    assert second[6:] != first and third[12:] != second[6:]


def test_conversations_differ_and_are_the_same_in_every_cluster(asked: list[list[int]]) -> None:
    for name in ("a", "b", "a"):
        asyncio.run(converse(LOAD, Trace("talk", 4, 2), name, []))
    one, other, again = asked
    assert one == again and one != other


def test_every_start_of_an_open_run_is_a_conversation(asked: list[list[int]]) -> None:
    run = asyncio.run(run_open(LOAD, TALK, [0.0, 0.0, 0.01], "r"))
    assert len(run.records) == 9 and len({tuple(prompt) for prompt in asked}) == 9


def test_a_closed_run_has_at_least_one_conversation_per_stream(asked: list[list[int]]) -> None:
    assert len(asyncio.run(run_closed(LOAD, TALK, 2, 0.0, "r")).records) == 6


@pytest.mark.parametrize("trace", TRACES, ids=lambda trace: trace.name)
def test_arrivals_come_at_the_rate_and_in_bursts(trace: Trace) -> None:
    starts = starts_s(trace, 2.0, 1000.0, seed=3)
    assert starts == starts_s(trace, 2.0, 1000.0, seed=3) != starts_s(trace, 2.0, 1000.0, seed=4)
    assert starts == sorted(starts) and 0 < starts[0] and starts[-1] <= 1000.0
    assert len(starts) == pytest.approx(2000, rel=0.2)
    assert len(starts) == trace.burst * len(set(starts))


def answered(ttft_s: float, end_s: float) -> RequestRecord:
    return RequestRecord("t", 0, 8, 2, 0.0, None, [ttft_s, ttft_s + 0.01], end_s, "length")


def test_the_ratio_is_to_the_better_of_the_two() -> None:
    limits = Limits(ttft_ms=100, tpot_ms=20)
    good, late = answered(0.05, 10.0), answered(0.5, 10.0)
    scores = {
        "never": Score([Run([good, good, late, late], 0.0)], 0, 32),
        "always": Score([Run([good] * 4, 0.0)], 32, 32),
        "auto": Score([Run([good, good, good, late], 0.0)], 8, 32),
    }
    rows = rows_of({"t": (Scale(1.5, limits), scores)})
    assert [row[2] for row in rows] == list(POLICIES)
    assert [row[3] for row in rows] == ["0.20", "0.40", "0.30"]
    assert [row[5] for row in rows] == ["0%", "100%", "25%"]
    assert [row[-1] for row in rows] == ["", "", "0.75"]
