"""Output that is held to a grammar, by true processes: whoever dies, it fits; and a hostile one harms nobody else."""

import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from bench.guided.proof import judge
from messages.worker_status import Role
from tests.end_to_end.cluster import Cluster, running_cluster, wait_until
from tests.hostile_grammars import HARMLESS, REFUSED

PROMPT = "Some words: "
WORDS = {"type": "array", "minItems": 30, "maxItems": 30, "items": {"type": "string", "pattern": "^[a-f]{4,6}$"}}
SCHEMA = {"type": "object", "properties": {"words": WORDS}, "required": ["words"], "additionalProperties": False}
GUIDED: dict[str, Any] = {"guided_json": json.dumps(SCHEMA), "max_new_tokens": 600}
NAMES = {
    "json_schema": "guided_json",
    "regex": "regular_constraint",
    "lark": "guided_grammar",
    "ebnf": "guided_grammar",
}


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory, redis_url: str, tiny_dir: Path) -> Iterator[Cluster]:
    """1 prefill + 2 decode workers; a test replaces the one that it kills."""
    env = {"PDQ_QUEUE__LEASE_S": "1.0"}
    with running_cluster(tmp_path_factory.mktemp("guided"), redis_url, tiny_dir, env, decode=2) as running:
        wait_until(lambda: running.num_ready() == 3, 60, "three workers are ready")
        yield running


def text_of(frames: list[dict[str, Any]]) -> str:
    return "".join(frame["token"]["text"] for frame in frames)


def test_a_decode_worker_dies_in_the_middle_of_the_json(trio: Cluster) -> None:
    more = {"do_sample": True, "temperature": 0.9, "seed": 3}
    unbroken = text_of(list(trio.stream(PROMPT, **GUIDED, **more)))
    assert judge(SCHEMA, unbroken) == ""
    frames = []
    for frame in trio.stream(PROMPT, **GUIDED, **more):
        frames.append(frame)
        if len(frames) == 40:
            trio.kill(trio.busy_process(Role.DECODE))
    trio.start("decode")
    assert text_of(frames) == unbroken
    assert frames[-1]["finish_reason"] == "stop"
    wait_until(lambda: trio.num_ready() == 3, 60, "three workers are ready again")
    wait_until(trio.all_blocks_are_free, 5, "nobody holds a block")


def test_a_decode_worker_that_prefills_itself_says_the_same_and_so_does_who_takes_over(trio: Cluster) -> None:
    def prefilled() -> int:
        return sum(status.prefilled_tokens for status in trio.workers(Role.DECODE))

    elsewhere = trio.generate(PROMPT, **GUIDED)
    trio.start("decode", PDQ_DECODE__LOCAL_PREFILL="always")
    wait_until(lambda: trio.num_ready() == 4, 60, "it is ready")
    give_up = time.monotonic() + 20
    while not prefilled():
        assert time.monotonic() < give_up
        assert trio.generate(PROMPT, **GUIDED) == elsewhere
    frames = []
    for frame in trio.stream(PROMPT, **GUIDED):
        frames.append(frame)
        if len(frames) == 40:  # its KV goes to another
            name = trio.busy_process(Role.DECODE)
            trio.kill(name, signal.SIGTERM)
    assert [text_of(frames)] == elsewhere["generated_text"]
    assert trio.processes[name].wait(10) == 0
    wait_until(lambda: trio.num_ready() == 3, 5, "three workers are left")


def test_hostile_grammars_cost_their_sender_an_error_and_nobody_else_anything(trio: Cluster) -> None:
    frames: list[tuple[float, int]] = []

    def read() -> None:
        for frame in trio.stream(PROMPT, max_new_tokens=2500, ignore_eos=True):
            frames.append((time.perf_counter(), frame["token"]["count_output_tokens"]))

    def ask(kind: str, text: str) -> httpx.Response:
        began = time.perf_counter()
        parameters = {NAMES[kind]: text, "max_new_tokens": 20}
        answer = httpx.post(trio.url + "/generate", json={"inputs": PROMPT, "parameters": parameters}, timeout=20)
        assert time.perf_counter() - began < 2.0, text[:80]
        return answer

    reader = threading.Thread(target=read)
    reader.start()
    wait_until(lambda: bool(frames), 10, "the stream has begun")
    for name, grammar in REFUSED.items():
        answer = ask(grammar.kind, grammar.text)
        assert answer.status_code == 417, (name, answer.text)
        assert "can not be followed" in answer.json()["message"], name
    for name, grammar in HARMLESS.items():
        assert ask(grammar.kind, grammar.text).status_code in (200, 417), name
    too_large = orjson.dumps({"enum": [f"value {number}" for number in range(20000)]}).decode()
    assert "at most 32768 are allowed" in ask("json_schema", too_large).json()["message"]
    reader.join(60)
    assert [count for _, count in frames] == list(range(1, 2501))
    gaps = [later - earlier for (earlier, _), (later, _) in zip(frames, frames[1:], strict=False)]
    assert max(gaps) < 1.0
    assert trio.num_ready() == 3
