"""`python -m bench.disaggregation`: is the policy of local prefill as good as the better of its two extremes?

Three clusters of one prefill and one decode worker stand side by side, under never, always and auto; they take turns
with the same arrivals, so that a machine whose speed drifts is as unfair to one as to the other. The load of each trace
is a share of what this machine was seen to take in a closed loop, and the limits are multiples of what an idle cluster
needs. Goodput: requests within both limits per second, over all rounds. Prints one Markdown table.
"""

import argparse
import asyncio
import statistics
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import uvloop

from bench import lightllm_style
from bench.disaggregation.cluster import Cluster
from bench.disaggregation.conversations import Run, run_closed, run_open
from bench.disaggregation.traces import TRACES, Trace, starts_s
from bench.http_stream import resolve
from bench.load import Load
from bench.machine import read_machine
from bench.markdown import markdown_table
from bench.prompts import prompt_source
from bench.report import Limits, distribution_ms, meets_limits

POLICIES = ("never", "always", "auto")
TTFT_FACTOR, TPOT_FACTOR = 4.0, 3.0  # of an idle cluster's: the limits
CLOSED_STREAMS = 3
IDLE_TIMEOUT_S = 120.0


@dataclass(slots=True)
class Scale:
    """What a trace is on this machine."""

    rate: float  # conversations per second
    limits: Limits


@dataclass(slots=True)
class Score:
    """One trace under one policy."""

    runs: list[Run] = field(default_factory=list)
    local_tokens: int = 0  # prefilled by the decode worker
    all_tokens: int = 0

    def goodput(self, limits: Limits) -> float:
        """Requests within the limits per second."""
        met = sum(meets_limits(record, limits) for run in self.runs for record in run.records)
        return met / sum(run.duration_s for run in self.runs)

    def attainment(self, limits: Limits) -> float:
        """Their share."""
        records = [record for run in self.runs for record in run.records]
        return sum(meets_limits(record, limits) for record in records) / max(1, len(records))

    def figures(self) -> tuple[str, str, str]:
        """TTFT p50, TPOT p50 and ITL p99 in milliseconds, as text."""
        records = [record for run in self.runs for record in run.records if record.succeeded]
        ttft = distribution_ms([record.ttft_s for record in records])
        tpot = distribution_ms([tpot_s for record in records if (tpot_s := record.tpot_s) is not None])
        itl = distribution_ms([gap_s for record in records for gap_s in record.itl_s])
        return tuple("-" if value is None else f"{value:.0f}" for value in (ttft.p50, tpot.p50, itl.p99))  # type: ignore[return-value]


async def scale_of(load: Load, trace: Trace, closed_s: float, load_share: float) -> Scale:
    """By one conversation alone, and by some at once for `closed_s`."""
    alone = await run_closed(load, trace, 1, 0.0, "alone")
    answers = [record for record in alone.records if record.succeeded]
    ttft_ms = statistics.median(record.ttft_s for record in answers) * 1000 * TTFT_FACTOR
    tpot_ms = statistics.median(record.tpot_s or 0.0 for record in answers) * 1000 * TPOT_FACTOR
    full = await run_closed(load, trace, CLOSED_STREAMS, closed_s, "capacity")
    capacity = len(full.records) / trace.num_turns / full.duration_s
    return Scale(capacity * load_share, Limits(ttft_ms, tpot_ms))


async def measure(options: argparse.Namespace, traces: Sequence[Trace]) -> dict[str, tuple[Scale, dict[str, Score]]]:
    """Every trace under every policy, by turns."""
    async with AsyncExitStack() as stack:
        clusters = [await stack.enter_async_context(Cluster(policy, options.model)) for policy in POLICIES]
        loads: dict[str, Load] = {}
        for cluster in clusters:
            target = await resolve(cluster.url, lightllm_style.PATH)
            prompts = prompt_source(options.prompt_seed, options.min_token_id, options.max_token_id)
            loads[cluster.policy] = Load(target, lightllm_style, prompts, IDLE_TIMEOUT_S)
            await run_closed(loads[cluster.policy], TRACES[0], 2, 0.0, "warm-up")
        found = {}
        for trace in traces:
            share = options.load_share or trace.load_share
            scale = await scale_of(loads["never"], trace, options.closed_s, share)
            print(f"{trace.name}: {scale.rate:.2f} conversations/s", file=sys.stderr, flush=True)
            found[trace.name] = scale, {policy: Score() for policy in POLICIES}
        for turn in range(options.rounds):
            for trace in traces:
                scale, scores = found[trace.name]
                starts = starts_s(trace, scale.rate, options.duration_s, options.seed + turn)
                order = [clusters[(turn + place) % len(clusters)] for place in range(len(clusters))]
                for cluster in order:
                    before = cluster.prefilled_tokens()
                    print(f"round {turn + 1}: {trace.name}, {cluster.policy}", file=sys.stderr, flush=True)
                    run = await run_open(loads[cluster.policy], trace, starts, f"round {turn}")
                    await asyncio.sleep(options.settle_s)  # until the last heartbeat is in the metrics
                    after = cluster.prefilled_tokens()
                    score = scores[cluster.policy]
                    score.runs.append(run)
                    score.local_tokens += after.get("decode", 0) - before.get("decode", 0)
                    score.all_tokens += sum(after.values()) - sum(before.values())
        return found


def rows_of(found: dict[str, tuple[Scale, dict[str, Score]]]) -> list[list[str]]:
    """The table, a line per trace and policy."""
    rows = []
    for name, (scale, scores) in found.items():
        best = max(scores[policy].goodput(scale.limits) for policy in POLICIES if policy != "auto")
        for policy in POLICIES:
            score = scores[policy]
            goodput = score.goodput(scale.limits)
            ratio = f"{goodput / best:.2f}" if policy == "auto" and best > 0 else ""
            ttft, tpot, itl = score.figures()
            rows.append(
                [
                    name if policy == POLICIES[0] else "",
                    f"{scale.rate:.2f}/s, {scale.limits.ttft_ms:.0f} / {scale.limits.tpot_ms:.0f} ms"
                    if policy == POLICIES[0]
                    else "",
                    policy,
                    f"{goodput:.2f}",
                    f"{score.attainment(scale.limits):.0%}",
                    f"{score.local_tokens / max(1, score.all_tokens):.0%}",
                    ttft,
                    tpot,
                    itl,
                    ratio,
                ]
            )
    return rows


HEADER = (
    "trace",
    "load; TTFT / TPOT limits",
    "local prefill",
    "goodput/s",
    "attained",
    "prefilled locally",
    "TTFT p50 ms",
    "TPOT p50 ms",
    "ITL p99 ms",
    "auto / better",
)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each trace under each policy")
    parser.add_argument("--duration-s", type=float, default=14.0, help="arrivals of one run")
    parser.add_argument("--closed-s", type=float, default=6.0, help="of the closed loop that tells the capacity")
    parser.add_argument("--settle-s", type=float, default=0.6, help="between two runs")
    parser.add_argument("--load-share", type=float, help="load of every trace as a share of its capacity")
    parser.add_argument("--trace", action="append", choices=[trace.name for trace in TRACES])
    parser.add_argument("--seed", type=int, default=0, help="of the arrivals")
    parser.add_argument("--prompt-seed", type=int, help="a fresh one when it is not given")
    parser.add_argument("--min-token-id", type=int, default=1000)
    parser.add_argument("--max-token-id", type=int, default=30000)
    options = parser.parse_args()
    traces = [trace for trace in TRACES if not options.trace or trace.name in options.trace]
    machine = read_machine()
    found = uvloop.run(measure(options, traces))
    print(markdown_table(HEADER, rows_of(found)))
    print(f"\n{machine.num_cores} cores, {machine.cpu_model}, load {machine.load_1min}, {machine.measured_at}")


if __name__ == "__main__":
    main()
