"""Workers die or stall in the middle of a stream; the client gets every token once, and the same text."""

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from messages import Role
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
    assert ids(list(pair.stream(PROMPT, max_new_tokens=NUM_TOKENS, ignore_eos=True, **parameters))) == expected


def test_a_prefill_worker_dies_in_a_long_prompt(pair: Cluster) -> None:
    prompt = [(37 * place) % 250 for place in range(6000)]
    expected = pair.generate(prompt, max_new_tokens=8, ignore_eos=True)
    other = [token + 1 for token in prompt]  # no prefix of it is cached
    frames = pair.stream(other, max_new_tokens=8, ignore_eos=True)

    got: list[dict] = []  # type: ignore[type-arg]
    reader = threading.Thread(target=lambda: got.extend(frames))
    reader.start()
    victim = pair.busy_process(Role.PREFILL)
    pair.kill(victim)
    reader.join(60)
    pair.start("prefill")
    assert [frame["token"]["count_output_tokens"] for frame in got] == list(range(1, 9))
    assert ids(got) == ids(list(pair.stream(other, max_new_tokens=8, ignore_eos=True)))
    assert pair.generate(prompt, max_new_tokens=8, ignore_eos=True) == expected


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
