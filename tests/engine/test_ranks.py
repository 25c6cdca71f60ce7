"""Ranks are processes: they live and die together, and whatever happens to one is told within a time limit."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from engine.decode_rows import DecodeRows
from engine.loading import load
from engine.model_runner import ModelRunner
from engine.ranks import ROOT, Ranks
from engine.step import DecodeStep
from errors import ConfigError, DeviceError, RankLost
from messages.worker_status import Role
from tests.engine.rank_owner import runner_with, settings_for
from tests.tiny_models import greedy, prefill_all, prompts, sequences_for, tiny_model, tiny_runner

PROMPTS = prompts(count=3, longest=40)
MODULE = "decode_worker.rank"


def until(condition: Callable[[], bool], what: str, deadline_s: float = 20) -> None:
    give_up = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < give_up, f"not within {deadline_s:g} s: {what}"
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


@contextmanager
def serving(num_ranks: int, rank_timeout_s: float = 60) -> Iterator[tuple[ModelRunner, Ranks]]:
    settings = settings_for(tiny_model("llama_even").path, rank_timeout_s)
    with Ranks.start(MODULE, num_ranks, "test", 1, settings) as ranks:
        yield runner_with(ranks, settings), ranks


def decode_for_ever(runner: ModelRunner) -> None:
    sequences = sequences_for(runner, PROMPTS, 1)
    prefill_all(runner, sequences, 64)
    while True:
        runner.decode(sequences)
        for sequence in sequences:
            sequence.num_computed_tokens -= 1


def test_two_processes_say_what_one_does_and_end_with_it() -> None:
    with serving(2) as (runner, ranks):
        expected = greedy(tiny_runner(tiny_model("llama_even").path), PROMPTS, 6)
        assert greedy(runner, PROMPTS, 6, token_budget=16) == expected
        (pid,) = ranks.pids
        store = Path(ranks._store_path).parent
    assert is_gone(pid)
    assert not store.exists()


def test_a_killed_rank_ends_the_step_and_the_other_ranks() -> None:
    with serving(2) as (runner, ranks):
        told: list[bool] = []
        ranks.on_lost = lambda: told.append(True)
        (pid,) = ranks.pids
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(RankLost, match=rf"rank 1 \(pid {pid}\) was killed by SIGKILL"):
            decode_for_ever(runner)
        until(lambda: bool(told), "whoever does not step is told")
        with pytest.raises(RankLost):
            decode_for_ever(runner)


def test_a_rank_that_hangs_is_lost_in_time_and_nothing_is_left_of_the_others() -> None:
    with serving(4, rank_timeout_s=1.5) as (runner, ranks):
        pids = ranks.pids
        os.kill(pids[1], signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(RankLost, match=r"a step of 4 ranks was not over within 1.5 s"):
            decode_for_ever(runner)
        assert time.monotonic() - began < 10
        until(lambda: all(is_gone(pid) for pid in pids), "every rank is gone", deadline_s=2)


def test_a_rank_0_that_hangs_itself_when_another_is_lost_exits(monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    exited = threading.Event()

    def exit_with(code: int) -> None:
        codes.append(code)
        exited.set()

    monkeypatch.setattr(os, "_exit", exit_with)
    monkeypatch.setattr("engine.ranks._UNWIND_S", 0.2)
    with serving(2) as (_, ranks), pytest.raises(RankLost):
        rows = DecodeRows(token_ids=[1], positions=[0], slots=[0], block_tables=[[0]])
        with ranks.step(DecodeStep(rows)):
            os.kill(ranks.pids[0], signal.SIGKILL)
            assert exited.wait(20)
    assert codes == [1]


def test_the_others_end_with_a_rank_0_that_is_killed() -> None:
    owner = subprocess.Popen(
        [sys.executable, "-m", "tests.engine.rank_owner", str(tiny_model("llama_even").path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout is not None
    with owner, owner.stdout:
        pid = int(owner.stdout.readline())
        assert not is_gone(pid)
        os.kill(pid, signal.SIGSTOP)  # it cannot end by itself
        owner.kill()
        owner.wait()
        until(lambda: is_gone(pid), "the orphan is killed")


def test_a_model_that_cannot_be_cut_is_told_by_name() -> None:
    settings = settings_for(tiny_model("llama").path)
    with Ranks.start(MODULE, 2, "test", 1, settings) as ranks:
        with pytest.raises(ConfigError, match="intermediate size, 101"):
            load(settings, Role.DECODE, 1, lambda line: None, ranks)
        with pytest.raises(ConfigError, match=r"rank 1: TENSOR_PARALLEL = 2: the model's intermediate size, 101"):
            ranks.num_blocks()


def test_a_rank_that_cannot_start_is_told() -> None:
    settings = settings_for(tiny_model("llama_even").path)
    with Ranks.start("no.such.module", 2, "test", 1, settings) as ranks:
        with pytest.raises(DeviceError, match=r"rank 1 \(pid \d+\) exited with code 1 before it could start"):
            load(settings, Role.DECODE, 1, lambda line: None, ranks)
