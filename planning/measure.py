"""Measures a cost file: steps in this process, then what lies around them, at a server.

Steps are measured alone on every core, and on a half, a quarter, ... of them while a neighbour computes on the rest, as
workers of one host do. On a GPU a worker has its device for itself, and there is one measurement. Imports torch.

All steps are gone through several times, and the median of each counts: what disturbs the machine for a second then
spoils one pass and no step, and a step has to fetch its weights after another one, as a worker's has.
"""

import statistics
from collections.abc import Callable, Sequence

from bench.machine import read_machine
from planning.costs import FORMAT_VERSION, Point, StepCosts
from planning.neighbour import busy_neighbour
from planning.step_bench import StepBench
from settings.loading import Settings

CONTEXTS = (64, 512, 1536)
BATCHES = (1, 4, 16, 64, 256)
NUM_PASSES = 5  # that count, after one that does not


def measure_steps(settings: Settings, model: str, report: Callable[[str], None]) -> StepCosts:
    """Costs of steps; the way around them is left at 0. `report` is told what goes on. Raises StartupError."""
    bench = StepBench(settings, report)
    budget = settings.prefill.token_budget_on(bench.device.type)
    sizes = sorted({max(1, budget // 8), max(1, budget // 2), budget})
    batches = sorted(
        {batch for batch in BATCHES if batch < settings.decode.max_running} | {settings.decode.max_running}
    )
    prefill: list[Point] = []
    decode: list[Point] = []
    for threads in thread_counts(bench.num_threads):
        bench.use_threads(threads)
        with busy_neighbour("decode", bench.num_threads - threads):
            pairs = grid(sizes, (0, *CONTEXTS[1:]), 1, bench)
            report(f"prefill steps of {sizes[0]} to {budget} tokens, {threads or 'its own'} threads")
            prefill += measured(threads, pairs, bench.prefill_s)
        with busy_neighbour("prefill", bench.num_threads - threads):
            pairs = grid(batches, CONTEXTS, None, bench)
            report(f"decode steps of 1 to {batches[-1]} sequences, {threads or 'its own'} threads")
            decode += measured(threads, pairs, bench.decode_s)
    machine = read_machine()
    return StepCosts(
        format_version=FORMAT_VERSION,
        model=model,
        machine=f"{machine.num_cores} cores, {machine.cpu_model}" if bench.num_threads else bench.device.type,
        cores=bench.num_threads,
        token_budget=budget,
        block_size=bench.block_size,
        prefill_blocks=bench.num_blocks,
        decode_blocks=bench.num_blocks,
        prefill=tuple(prefill),
        decode=tuple(decode),
    )


def measured(threads: int, pairs: Sequence[tuple[int, int]], step_s: Callable[[int, int], float]) -> list[Point]:
    """A point of each (size, context), by `step_s` of it."""
    passes = [[step_s(size, context) for size, context in pairs] for _ in range(1 + NUM_PASSES)][1:]
    medians = map(statistics.median, zip(*passes, strict=True))
    return [Point(threads, size, context, seconds) for (size, context), seconds in zip(pairs, medians, strict=True)]


def thread_counts(num_threads: int) -> list[int]:
    """All of them and every half down to 1; 0, for a device of its own, stays alone."""
    counts = [num_threads]
    while counts[-1] > 1:
        counts.append(counts[-1] // 2)
    return counts


def grid(
    sizes: list[int], contexts: tuple[int, ...], num_sequences: int | None, bench: StepBench
) -> list[tuple[int, int]]:
    """The (size, context) pairs that the pool and the model have room for; `num_sequences`: None, as many as `size`."""
    pairs = []
    for size in sizes:
        for context in contexts:
            longest = context + (size if num_sequences else 1)
            held = (num_sequences or size) * (-(-longest // bench.block_size)) * bench.block_size
            if longest <= bench.longest and held <= bench.pool_tokens:
                pairs.append((size, context))
    return pairs
