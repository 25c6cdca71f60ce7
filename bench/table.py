"""Figures as a table for people; in a pipe, plain text. It computes nothing."""

from rich.console import Console
from rich.table import Table

from bench.machine import CpuUse, Machine
from bench.report import Distribution, Limits, Summary
from bench.workload import Concurrency, Group, Periodic, Poisson, Workload

LATE_SEND_MS = 5.0  # an open loop whose p99 send is later than this offered another load than it says


def print_run(
    console: Console,
    label: str,
    workload: Workload,
    summaries: list[Summary],
    limits: Limits,
    cpu: CpuUse,
    machine: Machine,
) -> None:
    """One table per group, then the machine."""
    for group, summary in zip(workload.groups, summaries, strict=True):
        title = " · ".join(part for part in (label, workload.name, group.name, describe(group)) if part)
        console.print(title, style="bold", highlight=False)
        console.print(_latencies(summary))
        _print_counts(console, summary, limits)
        console.print()
    num_tokens = sum(summary.output_tokens for summary in summaries)
    per_token = f", {cpu.client_s / num_tokens * 1e6:.0f} us per output token" if num_tokens else ""
    share = cpu.client_s / cpu.wall_s * 100 if cpu.wall_s else 0.0
    console.print(f"client CPU {cpu.client_s:.2f} s = {share:.1f} % of one core{per_token}", highlight=False)
    if cpu.other_s is not None and cpu.server_s is not None:
        verdict = "clean" if cpu.is_clean else "NOT CLEAN: others used these cores, repeat the run"
        console.print(f"server CPU {cpu.server_s:.2f} s, others {cpu.other_s:.2f} s: {verdict}", highlight=False)
    elif cpu.machine_s is not None:
        console.print(
            f"machine busy {cpu.machine_s:.2f} CPU-s of {cpu.wall_s * machine.num_cores:.2f} "
            "(--server-pid tells the server's share from others')",
            highlight=False,
        )
    console.print(f"{machine.num_cores} cores, {machine.cpu_model}, load {machine.load_1min}", highlight=False)


def describe(group: Group) -> str:
    """A group in a few words."""
    match group.arrivals:
        case Concurrency(num_streams):
            arrivals = f"{num_streams} concurrent"
        case Poisson(rate_rps):
            arrivals = f"Poisson {rate_rps:g}/s"
        case Periodic(interval_s):
            arrivals = f"every {interval_s:g} s"
    limits = [f"{group.num_requests} requests"] if group.num_requests is not None else []
    limits += [f"{group.duration_s:g} s"] if group.duration_s is not None else []
    prefix = f" ({group.shared_prefix_tokens} shared)" if group.shared_prefix_tokens else ""
    return f"{arrivals}, {group.prompt_tokens}{prefix} in / {group.output_tokens} out, {', '.join(limits)}"


def _latencies(summary: Summary) -> Table:
    table = Table("ms", *(_right(name) for name in ("mean", "p50", "p90", "p99", "max", "samples")))
    rows = [("TTFT", summary.ttft_ms), ("ITL", summary.itl_ms), ("TPOT", summary.tpot_ms), ("E2E", summary.e2e_ms)]
    for name, values in rows:
        table.add_row(name, *_cells(values))
    return table


def _right(name: str) -> str:
    return f"{name:>8}"


def _cells(values: Distribution) -> list[str]:
    figures = (values.mean, values.p50, values.p90, values.p99, values.max)
    return [f"{'-' if figure is None else f'{figure:.1f}':>8}" for figure in figures] + [f"{values.count:>8}"]


def _print_counts(console: Console, summary: Summary, limits: Limits) -> None:
    attainment = "-" if summary.attainment is None else f"{summary.attainment * 100:.0f} %"
    lines = [
        f"output {summary.output_tokens_per_s:.1f} tokens/s, total {summary.total_tokens_per_s:.1f} tokens/s, "
        f"{summary.requests_per_s:.2f} requests/s over {summary.duration_s:.1f} s",
        f"goodput {summary.goodput_rps:.2f} requests/s: {summary.num_met_limits}/{summary.num_sent} = {attainment} "
        f"within TTFT {limits.ttft_ms:g} ms and TPOT {limits.tpot_ms:g} ms",
        f"succeeded {summary.num_succeeded}/{summary.num_sent}",
    ]
    if summary.offered_rps is not None:
        late = summary.send_delay_ms.p99
        warning = " - LATE, the client did not keep the schedule" if late is not None and late > LATE_SEND_MS else ""
        delay = "-" if late is None else f"{late:.1f}"
        lines.append(f"offered {summary.offered_rps:.2f} requests/s, sends late by p99 {delay} ms{warning}")
    for failure in summary.failures:
        example = f" e.g. {failure.example}" if failure.example else ""
        lines.append(f"FAILED {failure.count} x {failure.kind}{example}")
    if summary.failed_output_tokens:
        lines.append(f"{summary.failed_output_tokens} tokens of failed requests are in no figure")
    if summary.untimed_output_tokens:
        lines.append(
            f"{summary.untimed_output_tokens} of {summary.output_tokens} tokens had no frame of their own: TTFT is to "
            "the first text, ITL is between frames"
        )
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
