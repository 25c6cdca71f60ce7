"""One line against an API that refuses, fails, dies or has the request already."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from batch_worker.line import LineSender, has_one_request
from batch_worker.rows import Answer
from settings.batch import BatchSettings

OK = httpx.Response(200, json={"text": "x"})


def answered(
    script: Callable[[httpx.Request], httpx.Response], monkeypatch: pytest.MonkeyPatch, is_repeat: bool = False
) -> tuple[Answer, list[httpx.Request], list[float]]:
    """The answer, what was asked, and how long was waited each time."""
    asked: list[httpx.Request] = []
    waits: list[float] = []

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return script(request)

    async def no_sleep(seconds: float) -> None:
        waits.append(seconds)

    async def main() -> Answer:
        async with httpx.AsyncClient(transport=httpx.MockTransport(handle), base_url="http://api") as client:
            sender = LineSender(client, BatchSettings(max_attempts=3))
            return await sender.answer("batch_x-7", "/generate", {"inputs": "a"}, is_repeat)

    monkeypatch.setattr(asyncio, "sleep", no_sleep)
    return asyncio.run(main()), asked, waits


def test_a_line_says_who_it_is_and_that_it_can_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    answer, (request,), waits = answered(lambda _: OK, monkeypatch)
    assert (answer.status, answer.request_id, answer.is_completed, waits) == (200, "batch_x-7", True, [])
    assert (request.headers["x-priority"], request.headers["x-detached"]) == ("low", "true")
    assert request.headers["x-request-id"] == "batch_x-7"


def test_a_refusal_is_waited_out_and_a_failure_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = httpx.Response(503, headers={"Retry-After": "9"})
    turns = iter([refused, httpx.Response(429, headers={"Retry-After": "4"}), httpx.Response(500), OK])
    answer, asked, waits = answered(lambda _: next(turns), monkeypatch)
    assert answer.status == 200 and waits[0] == 9 and waits[1] == 4 and 0 < waits[2] < 1
    assert [each.headers["x-request-id"] for each in asked] == ["batch_x-7"] * 3 + ["batch_x-7-1"]


def test_what_fails_again_and_again_is_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    answer, asked, _ = answered(lambda _: httpx.Response(500, json={"error": {}}), monkeypatch)
    assert answer.status == 500 and len(asked) == 3
    answer, asked, _ = answered(lambda _: httpx.Response(400, json={"error": {}}), monkeypatch)
    assert answer.status == 400 and len(asked) == 1


def test_a_repeat_takes_the_answer_of_what_runs_already(monkeypatch: pytest.MonkeyPatch) -> None:
    views = iter([{"result": None, "error": None}, {"result": {"text": "y"}, "error": None}])
    answer, asked, _ = answered(lambda _: httpx.Response(200, json=next(views)), monkeypatch, is_repeat=True)
    assert json.loads(answer.body) == {"text": "y"}
    assert [(each.method, each.url.path) for each in asked] == [("GET", "/requests/batch_x-7")] * 2


def test_an_api_that_dies_is_asked_what_became_of_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: Any = iter([httpx.ReadError("gone"), httpx.ConnectError("away"), httpx.Response(404), OK])

    def script(_: httpx.Request) -> httpx.Response:
        turn = next(turns)
        if isinstance(turn, Exception):
            raise turn
        assert isinstance(turn, httpx.Response)
        return turn

    answer, asked, _ = answered(script, monkeypatch)
    assert answer.status == 200 and [each.method for each in asked] == ["POST", "GET", "GET", "POST"]


def test_several_prompts_are_no_single_request() -> None:
    assert has_one_request({"prompt": "a"}) and has_one_request({"prompt": [1, 2]}) and has_one_request({})
    assert not has_one_request({"prompt": ["a", "b"]}) and not has_one_request({"prompt": [[1], [2]]})
