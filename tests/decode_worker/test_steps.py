"""The thread goes on by itself exactly where nobody ends, nobody waits and the next step was put behind in time."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import pytest

from broker.choice import Append
from decode_worker.running import Running
from decode_worker.steps import Step, Steps
from engine.sampler import Sampled
from engine.sequence import Sequence
from messages.request import SamplingParams
from messages.token_event import TokenEvent

WAIT_S = 10.0


class Runner:
    """Chooses 100, 101, ... once it is let."""

    eos_token_ids = (2,)

    def __init__(self) -> None:
        self.gate = threading.Semaphore(0)
        self.seen: list[list[int]] = []  # the sequences' lengths at every step

    def decode(self, sequences: list[Sequence]) -> list[Sampled]:
        assert self.gate.acquire(timeout=WAIT_S)
        self.seen.append([sequence.num_tokens for sequence in sequences])
        return [Sampled(100 + len(self.seen), -0.5) for _ in sequences]


class Claim:
    def next_event(self, event: TokenEvent, index: int) -> Append:
        return Append("request", 0, 1, index, event, "api")


def running(max_new_tokens: int) -> Running:
    sampling = SamplingParams(seed=0, max_new_tokens=max_new_tokens, ignore_eos=True)
    return Running(cast(Any, Claim()), Sequence("request:0", [7, 8, 9], 3, sampling))


def play(scenario: Callable[[Steps, Runner, SimpleNamespace], Awaitable[None]]) -> Runner:
    runner, flags = Runner(), SimpleNamespace(needs_loop=False)

    async def main() -> None:
        with ThreadPoolExecutor(1) as thread:
            steps = Steps(cast(Any, runner), thread, lambda: flags.needs_loop)
            await asyncio.wait_for(scenario(steps, runner, flags), WAIT_S)

    asyncio.run(main())
    return runner


async def chosen(step: Step) -> list[int | None]:
    return [output.append.event.token_id for output in await step.outputs]


def test_a_step_that_was_put_behind_needs_nobody_to_begin() -> None:
    async def scenario(steps: Steps, runner: Runner, flags: SimpleNamespace) -> None:
        step = steps.begin([running(10), running(10)])
        steps.follow(step)
        runner.gate.release(2)
        assert step.following is not None
        assert await chosen(step.following) == [102, 102], "computed before anybody has looked at the first"
        assert await chosen(step) == [101, 101] and step.goes_on
        assert not step.following.goes_on, "nothing was put behind that one"

    assert play(scenario).seen == [[3, 3], [4, 4]]


@pytest.mark.parametrize("reason", ["somebody ends", "somebody waits", "too late"])
def test_it_is_not_computed(reason: str) -> None:
    async def scenario(steps: Steps, runner: Runner, flags: SimpleNamespace) -> None:
        step = steps.begin([running(10), running(1 if reason == "somebody ends" else 10)])
        flags.needs_loop = reason == "somebody waits"
        runner.gate.release(1 if reason == "too late" else 2)
        if reason == "too late":
            await step.outputs
        steps.follow(step)
        assert await chosen(step) == [101, 101] and not step.goes_on
        assert step.following is not None and await step.following.outputs == []

    assert play(scenario).seen == [[3, 3]]


def test_a_step_that_fails_is_followed_by_none() -> None:
    async def scenario(steps: Steps, runner: Runner, flags: SimpleNamespace) -> None:
        runner.decode = lambda sequences: 1 // 0  # type: ignore[assignment, method-assign, return-value]
        step = steps.begin([running(10)])
        steps.follow(step)
        with pytest.raises(ZeroDivisionError):
            await step.outputs
        assert step.following is not None and await step.following.outputs == []

    play(scenario)
