"""Every fault in every phase to everybody: who x when x what, one cell after the other.

A cell holds a request at a phase, does the fault to the process that has it (or would get it next), lets go, and wants
the client's story whole and the cluster as it was. Knows the cluster, its doors and the clients; prints nothing.
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from bench.chaos.cluster import API, LEASE_S, ChaosCluster, Member, wait_for
from bench.chaos.gates import Phase
from bench.chaos.listener import Listener
from bench.chaos.storm import CLEAN_WITHIN_S, EMPTY_S, learn_truth
from bench.chaos.story import Difference, Story, Token, compare, stories
from messages.worker_status import Role

REACH_S = 10.0  # how long a request may take to the phase
END_S = 30.0  # how long a story may take after the fault
STOPPED_S = 2.5 * LEASE_S
REDIS_STOPPED_S = 1.5 * LEASE_S
SLOW_S = 1.5
SLOW_RUN_S, SLOW_STOP_S = 0.01, 0.05  # a sixth of its speed
NUM_TOKENS_BEFORE = 4  # of a story, in the phase DECODING


class Target(StrEnum):
    """To whom."""

    PREFILL = "prefill"
    DECODE = "decode"
    API = "api"
    REDIS = "redis"
    CLIENT = "client"


class Fault(StrEnum):
    """What."""

    KILL = "kill"
    STOP = "SIGSTOP"
    SLOW = "slow"


@dataclass(frozen=True, slots=True)
class Cell:
    """One place of the matrix."""

    target: Target
    phase: Phase
    fault: Fault

    def __str__(self) -> str:
        return f"{self.fault} of {self.target} while {self.phase}"


@dataclass(frozen=True, slots=True)
class CellResult:
    """What came of it; `problem` is empty when all was well."""

    cell: Cell
    problem: str = ""


def cells() -> Iterator[Cell]:
    """The whole matrix."""
    for target in Target:
        for phase in Phase:
            for fault in Fault:
                yield Cell(target, phase, fault)


async def matrix(
    clusters: list[ChaosCluster], which: list[Cell], on_end: Callable[[CellResult], None]
) -> list[CellResult]:
    """Run `which`, a cell in each cluster at a time. `on_end` is called after each."""
    left = list(enumerate(which))
    results: list[CellResult] = []

    async def run(cluster: ChaosCluster) -> None:
        truth, _ = await learn_truth(cluster)
        while left:
            number, cell = left.pop(0)
            story = number % len(truth)
            problem = await run_cell(cluster, cell, f"cell-{number}", stories()[story], truth[story])
            results.append(CellResult(cell, problem))
            on_end(results[-1])

    async with asyncio.TaskGroup() as tasks:
        for cluster in clusters:
            tasks.create_task(run(cluster))
    return results


async def run_cell(cluster: ChaosCluster, cell: Cell, request_id: str, story: Story, truth: list[Token]) -> str:
    """What went wrong; empty when nothing did. Raises ChaosFailed when the phase is not reached."""
    # A client that says it will come back is waited for; the one that is killed here does not.
    is_back = (cell.target, cell.fault) != (Target.CLIENT, Fault.KILL)
    await _close_door(cluster, cell.phase)
    listener = Listener(cluster, story, request_id, is_back)
    try:
        await wait_for(lambda: _is_there(cluster, cell.phase, listener), REACH_S, f"{cell}: it does not get there")
        await _do(cluster, cell, listener.pid)
        problem = await _story_problem(listener, truth) if is_back else ""
    finally:
        cluster.gates.open(cell.phase)
        listener.close()
    census = await cluster.wait_clean(CLEAN_WITHIN_S)
    left = "" if census.is_clean else f"left after {CLEAN_WITHIN_S:g} s: {census}"
    return "; ".join(filter(None, [problem, left]))


async def _close_door(cluster: ChaosCluster, phase: Phase) -> None:
    """Afterwards nobody passes. A worker that waits inside a blocking take is through the door already."""
    cluster.gates.close(phase)
    takers = {Phase.QUEUED: Role.PREFILL, Phase.OFFERED: Role.DECODE}
    if phase in takers:
        pids = {member.pid for member in cluster.of(takers[phase].value)}

        async def are_all_held() -> bool:
            return pids <= set(cluster.gates.held(phase))

        await wait_for(are_all_held, REACH_S, f"every worker that takes at the door `{phase}`")


async def _is_there(cluster: ChaosCluster, phase: Phase, listener: Listener) -> bool:
    broker = await cluster.broker()
    match phase:
        case Phase.DECODING:
            return len(listener.heard().tokens) >= NUM_TOKENS_BEFORE
        case Phase.QUEUED:
            return await broker.prefill_queue.depth() > 0
        case Phase.OFFERED:
            return await broker.decode_queue.depth() > 0
        case _:
            return bool(cluster.gates.held(phase))


async def _story_problem(listener: Listener, truth: list[Token]) -> str:
    telling = await listener.wait_end(END_S)
    if telling.failure:
        return telling.failure
    difference = compare(telling.tokens, truth)
    return "" if difference == Difference() else f"{difference}"


async def _do(cluster: ChaosCluster, cell: Cell, listener_pid: int) -> None:
    """The fault, from beginning to end; the door is opened as soon as it has begun."""
    match cell.target:
        case Target.REDIS:
            pid, member = cluster.redis_pid, None
        case Target.CLIENT:
            pid, member = listener_pid, None
        case _:
            member = await _victim(cluster, cell)
            pid = member.pid
    match cell.fault:
        case Fault.KILL:
            await _kill(cluster, cell, pid, member)
        case Fault.STOP:
            os.kill(pid, signal.SIGSTOP)
            cluster.gates.open(cell.phase)
            await asyncio.sleep(REDIS_STOPPED_S if cell.target is Target.REDIS else STOPPED_S)
            os.kill(pid, signal.SIGCONT)
        case Fault.SLOW:
            cluster.gates.open(cell.phase)
            give_up = time.monotonic() + SLOW_S
            while time.monotonic() < give_up:
                os.kill(pid, signal.SIGSTOP)
                await asyncio.sleep(SLOW_STOP_S)
                os.kill(pid, signal.SIGCONT)
                await asyncio.sleep(SLOW_RUN_S)


async def _kill(cluster: ChaosCluster, cell: Cell, pid: int, member: Member | None) -> None:
    if cell.target is Target.REDIS:
        cluster.kill_redis()
        cluster.gates.open(cell.phase)
        await asyncio.sleep(EMPTY_S)
        await cluster.start_redis()
    elif member is None:
        os.kill(pid, signal.SIGKILL)
        cluster.gates.open(cell.phase)
    else:
        cluster.kill(member)
        cluster.gates.open(cell.phase)
        await asyncio.sleep(EMPTY_S)
        cluster.start(member)


async def _victim(cluster: ChaosCluster, cell: Cell) -> Member:
    """Who has the request, if it is one of this kind; else the first, who may be the next to have it."""
    if cell.target is Target.API:
        return cluster.of(API)[0]  # whom the listener asks first
    mine = cluster.of(cell.target.value)
    held = [member for pid in cluster.gates.held(cell.phase) if (member := cluster.by_pid(pid)) in mine]
    if not held and cell.target is Target.DECODE and cell.phase is Phase.DECODING:
        broker = await cluster.broker()
        busy = [
            worker.pid for worker in await broker.registry.live() if worker.role is Role.DECODE and worker.num_running
        ]
        held = [member for pid in busy if (member := cluster.by_pid(pid)) in mine]
    return next((member for member in held if member is not None), mine[0])
