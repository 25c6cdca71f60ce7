"""Sends conversations to a cluster: each turn's prompt is what was said before, the answers' tokens included.

Knows how a turn follows from the one before; knows no cluster and no figure.
"""

import asyncio
import time
from dataclasses import dataclass

from bench.disaggregation.traces import Trace
from bench.load import Load, send_request
from bench.record import RequestRecord
from bench.wire_style import Frame
from bench.workload import Concurrency, Group


@dataclass(slots=True)
class Run:
    """What came back of one trace in one cluster."""

    records: list[RequestRecord]
    start_s: float  # perf_counter()

    @property
    def duration_s(self) -> float:
        """From the start to the last answer's end."""
        return max((record.end_s for record in self.records), default=self.start_s) - self.start_s


async def converse(load: Load, trace: Trace, name: str, records: list[RequestRecord]) -> None:
    """One conversation from its first turn; it ends early when a turn fails."""
    token_ids: list[int] = []

    def listen(frame: Frame) -> None:
        if frame.token_id is not None:
            token_ids.append(frame.token_id)

    for turn in range(trace.num_turns):
        if turn:
            await asyncio.sleep(trace.pause_s)
        token_ids += load.prompts.prompt(f"{trace.name}/{name}", turn, trace.new_tokens)
        group = Group(trace.name, Concurrency(1), len(token_ids), trace.output_tokens)
        body = load.style.build_request(token_ids, trace.output_tokens)
        record = await send_request(load, group, turn, body, on_frame=listen)
        records.append(record)
        if not record.succeeded:
            return


async def run_open(load: Load, trace: Trace, starts_s: list[float], name: str) -> Run:
    """Every conversation begins at its time, whatever became of the others."""
    run = Run([], time.perf_counter())
    async with asyncio.TaskGroup() as tasks:
        for number, at_s in enumerate(starts_s):
            await asyncio.sleep(max(0.0, run.start_s + at_s - time.perf_counter()))
            tasks.create_task(converse(load, trace, f"{name}/{number}", run.records))
    return run


async def run_closed(load: Load, trace: Trace, num_streams: int, duration_s: float, name: str) -> Run:
    """So many conversations at once, a new one when one ends; none begins after `duration_s`."""
    run = Run([], time.perf_counter())

    async def stream(number: int) -> None:
        count = 0
        while count == 0 or time.perf_counter() - run.start_s < duration_s:
            await converse(load, trace, f"{name}/{number}/{count}", run.records)
            count += 1

    async with asyncio.TaskGroup() as tasks:
        for number in range(num_streams):
            tasks.create_task(stream(number))
    return run
