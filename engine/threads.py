"""How OpenMP's threads wait, and how many there are. To be settled before torch loads OpenMP: no torch here."""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

Params = ParamSpec("Params")
ResultT = TypeVar("ResultT")


def let_idle_threads_sleep() -> None:
    """Threads spin at barriers by default, and workers that share cores then wait for each other's spinning: with two
    threads, two busy cores and 16 sequences a step took 1584 ms, against 117 ms asleep. What is set already stays."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # A few microseconds all the same: what lies between two operations of a step.
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")


async def on_passing_thread(
    work: Callable[Params, ResultT], *arguments: Params.args, **keywords: Params.kwargs
) -> ResultT:
    """Run torch's work that comes before serving, on a thread that ends.

    A thread that stays keeps OpenMP threads of its own, and where these and the compute thread's are more than the
    cores, no barrier spins any more: a prompt of 128 tokens took 110 ms in place of 93.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="passing") as thread:
        return await asyncio.get_running_loop().run_in_executor(thread, lambda: work(*arguments, **keywords))
