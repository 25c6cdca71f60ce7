"""Sends a workload to a URL and records what comes back: closed loops and open loops on one event loop.

Open loop: a request is sent at its time whether or not earlier ones were answered; it counts as sent when its connect
begins, and how late that was against the schedule is reported. This file must not know statistics or a wire's fields.
"""

import asyncio
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from bench.http_stream import Target, post_stream
from bench.prompts import PromptSource
from bench.record import RequestRecord
from bench.wire_style import BadFrame, Frame, WireStyle
from bench.workload import Concurrency, Group, Workload, arrival_times

# A closed loop against a dead server would otherwise fail thousands of times a second.
PAUSE_AFTER_FAILURE_S = 0.1


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent where."""

    target: Target
    style: WireStyle
    prompts: PromptSource
    idle_timeout_s: float  # a request with no byte for so long has failed


@dataclass(slots=True)
class Outcome:
    """Every request of a run, in the order they ended."""

    start_s: float  # perf_counter() when the measured phase began
    records: list[RequestRecord] = field(default_factory=list)


OnEnd = Callable[[RequestRecord], None]


async def run_workload(load: Load, workload: Workload, seed: int, on_end: OnEnd) -> Outcome:
    """Runs all groups at once until the last request has ended. `on_end` is called after each request."""
    outcome = Outcome(time.perf_counter())

    def note(record: RequestRecord) -> None:
        outcome.records.append(record)
        on_end(record)

    async with asyncio.TaskGroup() as tasks:
        for group in workload.groups:
            run = _run_closed if isinstance(group.arrivals, Concurrency) else _run_open
            tasks.create_task(run(load, group, outcome.start_s, seed, note))
    return outcome


def ignore(frame: Frame) -> None:
    """What is not listened to."""


async def send_request(
    load: Load,
    group: Group,
    index: int,
    body: bytes,
    scheduled_s: float | None = None,
    on_frame: Callable[[Frame], None] = ignore,
) -> RequestRecord:
    """One request, from before its connect to the end of its response. Never raises for what the server does."""
    record = RequestRecord(
        group.name, index, group.prompt_tokens, group.output_tokens, time.perf_counter(), scheduled_s
    )
    one_frame_per_token = load.style.ONE_FRAME_PER_TOKEN

    def on_data(payload: bytes, now_s: float) -> None:
        try:
            frame = load.style.parse_frame(payload)
            record.take(frame, now_s, one_frame_per_token)
            on_frame(frame)
        except BadFrame as error:
            record.fail("bad_frame", str(error))

    try:
        answer = await post_stream(load.target, body, on_data, load.idle_timeout_s)
    except ConnectionRefusedError as error:
        record.fail("connection_refused", error.strerror or "")
        record.end_s = time.perf_counter()
    except OSError as error:
        record.fail("connect_failed", str(error))
        record.end_s = time.perf_counter()
    else:
        record.end(answer, time.perf_counter())
    return record


def build_body(load: Load, group: Group, index: int) -> bytes:
    """The body of request `index`. Built before the send time is taken."""
    prompt = load.prompts.prompt(group.name, index, group.prompt_tokens, group.shared_prefix_tokens)
    return load.style.build_request(prompt, group.output_tokens)


async def _run_closed(load: Load, group: Group, start_s: float, seed: int, on_end: OnEnd) -> None:
    assert isinstance(group.arrivals, Concurrency)
    indexes = itertools.count() if group.num_requests is None else iter(range(group.num_requests))

    async def stream() -> None:
        while group.duration_s is None or time.perf_counter() - start_s < group.duration_s:
            index = next(indexes, None)
            if index is None:
                return
            record = await send_request(load, group, index, build_body(load, group, index))
            on_end(record)
            if not record.succeeded:
                await asyncio.sleep(PAUSE_AFTER_FAILURE_S)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(group.arrivals.num_streams):
            tasks.create_task(stream())


async def _run_open(load: Load, group: Group, start_s: float, seed: int, on_end: OnEnd) -> None:
    async def one(index: int, body: bytes, scheduled_s: float) -> None:
        on_end(await send_request(load, group, index, body, scheduled_s))

    async with asyncio.TaskGroup() as tasks:
        for index, offset_s in enumerate(arrival_times(group, seed)):
            body = build_body(load, group, index)
            await asyncio.sleep(max(0.0, start_s + offset_s - time.perf_counter()))
            tasks.create_task(one(index, body, start_s + offset_s))
