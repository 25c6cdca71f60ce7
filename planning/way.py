"""What lies around the steps, told from outside: a few requests to a server whose steps are known.

One at a time: a short prompt and a long one of two tokens each, then a stream; then streams at once; prompts beside
streams. What is left of their times when the steps are taken away is the way; how much longer prompts take beside
streams than a simulation says is the stretch. Knows HTTP through the bench; knows no engine.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import msgspec

from bench.load import Load, run_workload
from bench.record import RequestRecord
from bench.workload import Concurrency, Group, Periodic, Workload
from errors import PdqError
from planning.cluster import Size, simulate
from planning.costs import StepCosts, Surface, Way
from planning.load import Groups
from settings.loading import Settings

SHORT_TOKENS, LONG_TOKENS = 64, 512
NUM_STREAMS, ALONE_TOKENS, TOGETHER_TOKENS = 16, 48, 128
WARM_UP = Group("warm-up", Concurrency(2), SHORT_TOKENS, 8, num_requests=4)
SHORT = Group("short", Concurrency(1), SHORT_TOKENS, 2, num_requests=6)
LONG = Group("long", Concurrency(1), LONG_TOKENS, 2, num_requests=4)
ALONE = Group("alone", Concurrency(1), SHORT_TOKENS, ALONE_TOKENS, num_requests=2)
TOGETHER = Group("together", Concurrency(NUM_STREAMS), SHORT_TOKENS, TOGETHER_TOKENS, num_requests=NUM_STREAMS)
STREAMS = Group("streams", Concurrency(6), SHORT_TOKENS, 160, num_requests=6)
BESIDE = Group("beside", Periodic(0.7), 320, 2, num_requests=5)
PHASES = ((WARM_UP,), (SHORT,), (LONG,), (ALONE,), (TOGETHER,), (STREAMS, BESIDE))
MOST_STRETCH, STRETCH_STEPS = 4.0, 12

Records = Mapping[str, Sequence[RequestRecord]]  # by group


async def measure_way(costs: StepCosts, settings: Settings, load: Load, report: Callable[[str], None]) -> Way:
    """The way at a server of one worker of each role that is otherwise idle. Raises PdqError when a request fails."""
    records: dict[str, list[RequestRecord]] = {}
    for groups in PHASES:
        words = (f"{one.num_requests} requests of {one.prompt_tokens} + {one.output_tokens} tokens" for one in groups)
        report(" beside ".join(words))
        outcome = await run_workload(load, Workload(groups[0].name, groups), 0, lambda record: None)
        failures = [record.failure for record in outcome.records if record.failure is not None]
        if failures:
            raise PdqError(f"{len(failures)} of {len(outcome.records)} requests failed: {failures[0]}")
        for group in groups:
            records[group.name] = [record for record in outcome.records if record.group == group.name]
    costs = msgspec.structs.replace(costs, way=way_of(costs, records))
    return msgspec.structs.replace(costs.way, shared_stretch=shared_stretch(costs, settings, records))


def way_of(costs: StepCosts, records: Records) -> Way:
    """The way by the measured requests of each group, all but the stretch."""
    threads = float(costs.cores)
    surface = Surface(costs.decode)

    def decode_s(batch: int, context: int) -> float:
        return surface.at(batch, context).seconds(threads)

    short_s, num_short = prefill_steps(costs, SHORT_TOKENS)
    long_s, num_long = prefill_steps(costs, LONG_TOKENS)
    front_s = max(0.0, _median(records["short"], lambda record: record.ttft_s) - short_s)
    gaps_s = _median(records["long"], lambda record: record.ttft_s) - front_s - long_s
    alone_s = _median(records["alone"], lambda record: statistics.median(record.itl_s[1:]))
    decode_gap_s = max(0.0, alone_s - decode_s(1, SHORT_TOKENS + ALONE_TOKENS // 2))
    together_s = full_step_s(records["together"])
    steps_s = decode_s(NUM_STREAMS, SHORT_TOKENS + TOGETHER_TOKENS // 2) + decode_gap_s
    token_s = max(0.0, together_s - steps_s) / NUM_STREAMS
    handoffs_s = [
        _median(records[name], lambda record: record.itl_s[0]) - decode_s(1, num_tokens)
        for name, num_tokens in (("short", SHORT_TOKENS), ("long", LONG_TOKENS))
    ]
    handoff_token_s = max(0.0, handoffs_s[1] - handoffs_s[0]) / (LONG_TOKENS - SHORT_TOKENS)
    return Way(
        front_s=front_s,
        handoff_s=max(0.0, handoffs_s[0] - SHORT_TOKENS * handoff_token_s),
        handoff_token_s=handoff_token_s,
        prefill_gap_s=max(0.0, gaps_s / max(1, num_long - num_short)),
        decode_gap_s=decode_gap_s,
        token_s=token_s,
    )


def prefill_steps(costs: StepCosts, num_tokens: int) -> tuple[float, int]:
    """(seconds, number) of the steps of one prompt alone on all cores."""
    surface = Surface(costs.prefill)
    starts = range(0, num_tokens, costs.token_budget)
    sizes = [min(costs.token_budget, num_tokens - start) for start in starts]
    seconds = [surface.at(size, start).seconds(float(costs.cores)) for size, start in zip(sizes, starts, strict=True)]
    return sum(seconds), len(sizes)


def full_step_s(records: Sequence[RequestRecord]) -> float:
    """The median gap between tokens while every one of these streams runs."""
    first_s = max(record.arrivals_s[0] for record in records)
    last_s = min(record.arrivals_s[-1] for record in records)
    times = [[time_s for time_s in record.arrivals_s if first_s < time_s <= last_s] for record in records]
    gaps = [later - earlier for each in times for earlier, later in pairwise(each)]
    if not gaps:
        raise PdqError(f"{len(records)} streams of {TOGETHER_TOKENS} tokens never ran all at once")
    return statistics.median(gaps)


def shared_stretch(costs: StepCosts, settings: Settings, records: Records) -> float:
    """The stretch with which simulated prompts beside streams have the measured mean TTFT; between 1 and 4. A median of
    so few moves in jumps: for 1.7 it finds 1.77, the mean 1.69."""
    if not costs.cores:
        return 1.0
    measured_s = statistics.fmean(record.ttft_s for record in records["beside"])
    least, most = 1.0, MOST_STRETCH
    for _ in range(STRETCH_STEPS):
        middle = (least + most) / 2
        tried = msgspec.structs.replace(costs, way=msgspec.structs.replace(costs.way, shared_stretch=middle))
        simulated = simulate(tried, settings, Size(1, 1), Groups((STREAMS, BESIDE), 0))
        beside_s = [request.ttft_s for request in simulated.requests if request.group == BESIDE.name]
        if statistics.fmean(beside_s) < measured_s:
            least = middle
        else:
            most = middle
    return least


def _median(records: Sequence[RequestRecord], figure: Callable[[RequestRecord], float]) -> float:
    return statistics.median(figure(record) for record in records)
