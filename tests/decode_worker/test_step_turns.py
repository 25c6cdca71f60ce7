"""One slice of a pull per step, and no waiting where nothing is computed."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from decode_worker import step_turns
from decode_worker.step_turns import StepTurns


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_turns, "MAX_WAIT_S", 20.0)


def test_nobody_waits_while_nothing_is_computed() -> None:
    turns = StepTurns()
    turns.wait()
    turns.begin_step()
    turns.rest()
    turns.wait()


def test_a_slice_waits_for_the_next_step() -> None:
    turns, copied = StepTurns(), list[int]()
    turns.begin_step()

    def pull() -> None:
        for slice_number in range(3):
            copied.append(slice_number)
            turns.wait()

    with ThreadPoolExecutor(1) as thread:
        pulling = thread.submit(pull)
        for num_steps in range(1, 4):
            while len(copied) < num_steps:
                assert not pulling.done()
            with turns._changed:  # it waits, or is about to: no more than a slice was copied beside this step
                assert len(copied) == num_steps
            while not turns._changed._waiters:  # type: ignore[attr-defined]
                assert not pulling.done()
            turns.begin_step()
        pulling.result(10)


def test_whoever_waits_goes_on_when_the_batch_is_empty() -> None:
    turns = StepTurns()
    turns.begin_step()
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(turns.wait)
        while not turns._changed._waiters:  # type: ignore[attr-defined]
            assert not waiting.done()
        turns.rest()
        waiting.result(10)


def test_a_step_that_takes_long_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_turns, "MAX_WAIT_S", 0.01)
    turns = StepTurns()
    turns.begin_step()
    turns.wait()
