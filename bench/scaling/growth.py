"""What grows with what: concurrent requests on the real model, workers on simulated compute. Figures only.

Workers are more than this machine's cores, so their compute is simulated (`simulated_role.py`). The times are chosen so
that a worker of each role bears the same number of requests per second, and four of both still leave the cores room
for everything that is not simulated.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.compare.run_server import Running
from bench.http_stream import resolve
from bench.load import Load, Outcome, run_workload
from bench.machine import CpuClock
from bench.options import StyleName, wire_style
from bench.prompts import PromptSource
from bench.record import RequestRecord
from bench.report import Limits, summarize
from bench.scaling.simulated_cluster import simulated_cluster
from bench.scaling.simulated_role import Pace
from bench.workload import Concurrency, Group, Workload, warmup_of
from errors import PdqError
from messages.worker_status import Role

CONCURRENCIES = (1, 2, 4, 8, 16, 32)
PROMPT_TOKENS = OUTPUT_TOKENS = 128
ROUNDS = 2  # requests of each stream, but for MIN_REQUESTS
MIN_REQUESTS = 4
LIMITS = Limits(1000.0, 60.0)

MAX_WORKERS = 4
PACE = Pace(prefill_token_s=0.0008, decode_step_s=0.040)
SIMULATED_PROMPT_TOKENS, SIMULATED_OUTPUT_TOKENS = 128, 21
MAX_RUNNING = 8
STREAMS_PER_WORKER = 24
WARM_S, MEASURED_S = 3.0, 10.0


@dataclass(frozen=True, slots=True)
class AtConcurrency:
    """The real cluster with so many requests in flight."""

    concurrency: int
    output_tokens_per_s: float
    ttft_p50_ms: float | None
    itl_p50_ms: float | None
    num_failed: int
    is_clean: bool | None


@dataclass(frozen=True, slots=True)
class AtWorkers:
    """The simulated cluster with so many workers."""

    num_prefill: int
    num_decode: int
    requests_per_s: float
    num_failed: int
    busy_cores: float  # of the whole machine: what is not simulated, the client included, and whoever else is there


class Fruitless(PdqError):
    """No request succeeded."""


async def at_concurrency(server: Running, concurrency: int, seed: int) -> AtConcurrency:
    """One closed loop. Raises Fruitless."""
    number = max(MIN_REQUESTS, ROUNDS * concurrency)
    group = Group("all", Concurrency(concurrency), PROMPT_TOKENS, OUTPUT_TOKENS, num_requests=number)
    workload = Workload("concurrent", (group,))
    load = server.load(PromptSource(seed + concurrency))
    await run_workload(load, warmup_of(workload, 2), 0, lambda record: None)
    clock = CpuClock(server.pid)
    outcome = await run_workload(load, workload, 0, lambda record: None)
    cpu = clock.read()
    summary = summarize(group, outcome.records, outcome.start_s, LIMITS)
    if not summary.num_succeeded:
        raise Fruitless(f"{concurrency} concurrent: {summary.failures}")
    return AtConcurrency(
        concurrency,
        summary.output_tokens_per_s,
        summary.ttft_ms.p50,
        summary.itl_ms.p50,
        summary.num_sent - summary.num_succeeded,
        cpu.is_clean,
    )


async def at_workers(num_prefill: int, num_decode: int, seed: int) -> AtWorkers:
    """A cluster of its own under as much load as it takes. Raises ClusterFailed, Fruitless."""
    workers = {Role.PREFILL: num_prefill, Role.DECODE: num_decode}
    async with simulated_cluster(workers, PACE, MAX_RUNNING) as url:
        style = wire_style(StyleName.LIGHTLLM)
        load = Load(await resolve(url, style.PATH), style, PromptSource(seed, 0, 90), idle_timeout_s=60.0)
        streams = Concurrency(STREAMS_PER_WORKER * min(num_prefill, num_decode))
        group = Group("all", streams, SIMULATED_PROMPT_TOKENS, SIMULATED_OUTPUT_TOKENS, duration_s=WARM_S + MEASURED_S)
        clock = CpuClock(None)
        outcome = await run_workload(load, Workload("workers", (group,)), 0, lambda record: None)
        cpu = clock.read()
    if not any(record.succeeded for record in outcome.records):
        raise Fruitless(f"{num_prefill} prefill, {num_decode} decode: {outcome.records[0].failure}")
    return AtWorkers(
        num_prefill,
        num_decode,
        steady_rps(outcome, WARM_S, MEASURED_S),
        sum(not record.succeeded for record in outcome.records),
        (cpu.machine_s or 0.0) / cpu.wall_s,
    )


def steady_rps(outcome: Outcome, from_s: float, for_s: float) -> float:
    """Requests that ended well per second of a window in which the load neither begins nor ends."""

    def is_inside(record: RequestRecord) -> bool:
        return record.succeeded and 0 <= record.end_s - outcome.start_s - from_s < for_s

    return sum(map(is_inside, outcome.records)) / for_s


def borne_by_one() -> tuple[float, float]:
    """Requests per second that a (prefill, decode) worker bears, by the simulated times alone."""
    # The first token is prefill's.
    steps = SIMULATED_OUTPUT_TOKENS - 1
    return 1 / (PACE.prefill_token_s * SIMULATED_PROMPT_TOKENS), MAX_RUNNING / (steps * PACE.decode_step_s)


def worker_counts() -> Sequence[tuple[int, int]]:
    """(prefill, decode): both growing, then each beside four of the other."""
    both = [(number, number) for number in range(1, MAX_WORKERS + 1)]
    prefill = [(number, MAX_WORKERS) for number in range(1, MAX_WORKERS)]
    decode = [(MAX_WORKERS, number) for number in range(1, MAX_WORKERS)]
    return [*both, *prefill, *decode]
