"""Workers die or stall in the middle of a stream; the client gets every token once, and the same text."""

import json
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from errors import STALLED_EXIT_CODE
from messages.worker_status import Role
from tests.end_to_end.cluster import Cluster, running_cluster, wait_until

PROMPT = "The history of the railway began"
NUM_TOKENS = 400
SEEDED = {"do_sample": True, "temperature": 0.9, "top_p": 0.95, "seed": 11, "frequency_penalty": 0.5}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, redis_url: str, tiny_dir: Path) -> Iterator[Cluster]:
    """2 prefill + 2 decode workers; tests replace those that they kill."""
    folder = tmp_path_factory.mktemp("pair")
    env = {"PDQ_QUEUE__LEASE_S": "1.0"}
    with running_cluster(folder, redis_url, tiny_dir, env, prefill=2, decode=2) as running:
        wait_until(lambda: running.num_ready() == 4, 60, "four workers are ready")
        yield running


def ids(frames: list[dict]) -> list[int]:  # type: ignore[type-arg]
    return [frame["token"]["id"] for frame in frames]


@pytest.mark.parametrize(
    ("number", "parameters"), [(signal.SIGKILL, SEEDED), (signal.SIGSTOP, {})], ids=["killed-seeded", "stopped-greedy"]
)
def test_a_decode_worker_goes_mid_stream(pair: Cluster, number: signal.Signals, parameters: dict[str, object]) -> None:
    expected = ids(list(pair.stream(PROMPT, max_new_tokens=NUM_TOKENS, ignore_eos=True, **parameters)))
    frames = []
    victim = ""
    for frame in pair.stream(PROMPT, max_new_tokens=NUM_TOKENS, ignore_eos=True, **parameters):
        frames.append(frame)
        if len(frames) == 60:
            victim = pair.busy_process(Role.DECODE)
            pair.kill(victim, number)
    try:
        assert ids(frames) == expected
        assert [frame["token"]["count_output_tokens"] for frame in frames] == list(range(1, NUM_TOKENS + 1))
        assert [frame["finished"] for frame in frames] == [False] * (NUM_TOKENS - 1) + [True]
    finally:
        if number == signal.SIGSTOP:
            pair.kill(victim, signal.SIGCONT)  # it wakes up, finds itself fenced, and serves on
        else:
            pair.start("decode")
        wait_until(lambda: pair.num_ready() == 4, 60, "four workers are ready again")
    wait_until(pair.all_blocks_are_free, 5, "nobody holds a block, the one that woke up neither")
    assert ids(list(pair.stream(PROMPT, max_new_tokens=NUM_TOKENS, ignore_eos=True, **parameters))) == expected


def test_a_decode_worker_goes_in_a_stream_of_openais(pair: Cluster) -> None:
    """Text, logprobs of prompt and output, and usage are those of a stream that nothing happened to."""
    body = {
        "prompt": PROMPT,
        "max_tokens": NUM_TOKENS,
        "ignore_eos": True,
        "n": 2,
        "seed": 5,
        "stream": True,
        "echo": True,
        "logprobs": 2,
        "stream_options": {"include_usage": True},
    }

    def ask(dies: bool) -> tuple[list[str], list[list[float]], dict[str, int]]:
        texts = ["", ""]
        logprobs: list[list[float]] = [[], []]
        usage: dict[str, int] = {}
        with httpx.stream("POST", pair.url + "/v1/completions", json=body, timeout=60) as answer:
            assert answer.status_code == 200, answer.read()
            lines = [line for line in answer_lines(answer, dies, pair) if line]
        assert lines[-1] == "data: [DONE]"
        for line in lines[:-1]:
            chunk = json.loads(line.removeprefix("data: "))
            for choice in chunk["choices"]:
                texts[choice["index"]] += choice["text"]
                logprobs[choice["index"]] += choice["logprobs"]["token_logprobs"]
            usage = chunk["usage"] or usage
        return texts, logprobs, usage

    expected, told = ask(dies=False), ask(dies=True)
    pair.start("decode")
    wait_until(lambda: pair.num_ready() == 4, 60, "four workers are ready again")
    assert told[0] == expected[0]
    num_prompt = expected[2]["prompt_tokens"]
    assert told[2]["completion_tokens"] == expected[2]["completion_tokens"] == 2 * NUM_TOKENS
    for some, same in zip(told[1], expected[1], strict=True):
        assert len(some) == num_prompt + NUM_TOKENS and some[0] is same[0] is None
        assert some[1:] == pytest.approx(same[1:], abs=1e-3)


def answer_lines(answer: httpx.Response, dies: bool, pair: Cluster) -> Iterator[str]:
    """The lines of a stream, in the middle of which a decode worker may be killed."""
    for place, line in enumerate(answer.iter_lines()):
        yield line
        if dies and place == 120:
            pair.kill(pair.busy_process(Role.DECODE))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_prefill_worker_goes_in_a_long_prompt(pair: Cluster, number: signal.Signals) -> None:
    prompt = [(37 * place) % 250 for place in range(6000)]
    expected = pair.generate(prompt, max_new_tokens=8, ignore_eos=True)
    other = [(token + number) % 250 for token in prompt]  # no prefix of it is cached
    frames = pair.stream(other, max_new_tokens=8, ignore_eos=True)

    got: list[dict] = []  # type: ignore[type-arg]
    reader = threading.Thread(target=lambda: got.extend(frames))
    reader.start()
    victim = pair.busy_process(Role.PREFILL)
    pair.kill(victim, number)
    reader.join(60)
    if number == signal.SIGSTOP:
        pair.kill(victim, signal.SIGCONT)
    else:
        pair.start("prefill")
    wait_until(lambda: pair.num_ready() == 4, 60, "four workers are ready again")
    wait_until(pair.all_blocks_are_free, 5, "nobody holds a block")
    assert [frame["token"]["count_output_tokens"] for frame in got] == list(range(1, 9))
    assert ids(got) == ids(list(pair.stream(other, max_new_tokens=8, ignore_eos=True)))
    assert pair.generate(prompt, max_new_tokens=8, ignore_eos=True) == expected


HANGS_IN_ITS_STEP_30 = """
import sys, time
from engine.model_runner import ModelRunner
decode, steps = ModelRunner.decode, iter(range(30))
ModelRunner.decode = lambda *those: decode(*those) if next(steps, None) is not None else time.sleep(1e6)
sys.argv = ["pdq", "decode"]
from cli.__main__ import main
main()
"""


def test_a_worker_that_hangs_gives_up_its_work_and_ends(pair: Cluster) -> None:
    expected = ids(list(pair.stream(PROMPT, max_new_tokens=60, ignore_eos=True)))
    hanging = pair.start("decode", sys.executable, "-c", HANGS_IN_ITS_STEP_30, PDQ_QUEUE__STALL_S="2.0")
    wait_until(lambda: pair.num_ready() == 5, 60, "it is ready")

    def ask(_: int) -> list[int]:
        return ids(list(pair.stream(PROMPT, max_new_tokens=60, ignore_eos=True)))

    with ThreadPoolExecutor(6) as clients:
        assert list(clients.map(ask, range(6))) == [expected] * 6
    assert pair.processes.pop(hanging).wait(5) == STALLED_EXIT_CODE
    assert "worker_stalled" in pair.log(hanging)
    assert "Thread" in pair.log(hanging)  # where it hung
    wait_until(lambda: pair.num_ready() == 4, 5, "it is off the registry")
    wait_until(pair.all_blocks_are_free, 5, "nobody holds a block")


def test_health_turns_red_within_three_seconds_of_the_last_decode_worker(pair: Cluster) -> None:
    alive = [name for name, process in pair.processes.items() if name.startswith("decode") and process.poll() is None]
    for name in alive:
        pair.kill(name, signal.SIGSTOP)
    try:
        wait_until(lambda: pair.health() == 503, 3, "503 after every decode worker was stopped")
    finally:
        for name in alive:
            pair.kill(name, signal.SIGCONT)
    wait_until(lambda: pair.health() == 200, 10, "200 after they go on")
