"""`pdq bench overload`, `python -m bench.overload`: more load than the server can take, and what it does then.

First what an idle server takes for a small request, then its capacity in a closed loop, then Poisson arrivals at a
multiple of that, then small requests until they take as long as before. What the figures mean is in overload_report.py.
"""

import asyncio
import sys
import time
import urllib.request
from dataclasses import replace
from typing import Annotated

import typer
import uvloop
from rich.console import Console

from bench.exit_status import exit_status
from bench.http_stream import resolve
from bench.load import Load, Outcome, build_body, run_workload, send_request
from bench.machine import Machine, read_machine
from bench.options import (
    DEFAULT_URL,
    ApiKey,
    ArrivalSeed,
    IdleTimeout,
    JsonFile,
    Label,
    MaxTokenId,
    MinTokenId,
    ModelName,
    PromptSeed,
    Style,
    StyleName,
    Url,
    wire_style,
)
from bench.overload_report import NUM_NORMAL, Bounds, OverloadReport, is_refused, missed, recovery_s, report_of
from bench.prompts import prompt_source
from bench.record import RequestRecord
from bench.report import Distribution, Limits
from bench.result import FORMAT_VERSION, command_line, write_json
from bench.workload import Concurrency, Group, Poisson, Workload

NUM_IDLE = 10
PROBE_OUTPUT_TOKENS = 8
GIVE_UP_S = 30.0  # how long after the last arrival the recovery is waited for
SETTLE_S = 1.0  # until a worker's last heartbeat is in the metrics
COMPUTED = "pdq_prefilled_tokens_total{"


def overload(
    url: Url = DEFAULT_URL,
    api_key: ApiKey = "",
    style: Style = StyleName.LIGHTLLM,
    model: ModelName = "",
    concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight while capacity is measured.")] = 8,
    capacity_s: Annotated[float, typer.Option(min=1, help="How long capacity is measured.")] = 20.0,
    request_rate: Annotated[float | None, typer.Option(min=0.01, help="Capacity, if known: requests per s.")] = None,
    factor: Annotated[float, typer.Option(min=0.1, help="Load, in capacities.")] = 3.0,
    duration_s: Annotated[float, typer.Option(min=1, help="How long the overload lasts.")] = 60.0,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Length of each prompt.")] = 256,
    output_tokens: Annotated[int, typer.Option(min=1, help="Tokens asked of each request.")] = 64,
    ttft_slo_ms: Annotated[float, typer.Option(min=0, help="Limit of TTFT.")] = 1000.0,
    tpot_slo_ms: Annotated[float, typer.Option(min=0, help="Limit of TPOT, as the server can do at capacity.")] = 60.0,
    seed: ArrivalSeed = 0,
    prompt_seed: PromptSeed = None,
    min_token_id: MinTokenId = 1000,
    max_token_id: MaxTokenId = 30000,
    idle_timeout_s: IdleTimeout = 120.0,
    json_file: JsonFile = None,
    label: Label = "",
) -> None:
    """Offer a multiple of the server's capacity: refusals, kept limits, prefill in vain, recovery.

    Exit status: 0 when all bounds hold, 1 when one is missed, 2 when an option does not fit.
    """
    console = Console()
    limits, machine = Limits(ttft_slo_ms, tpot_slo_ms), read_machine()
    with exit_status():
        prompts = prompt_source(prompt_seed, min_token_id, max_token_id)
        wire = wire_style(style, model)

        async def measure() -> tuple[float, OverloadReport]:
            load = Load(await resolve(url, wire.PATH, api_key), wire, prompts, idle_timeout_s)
            idle = await _probe(load, "idle", NUM_IDLE)
            rate_rps = request_rate
            if rate_rps is None:
                group = Group("capacity", Concurrency(concurrency), prompt_tokens, output_tokens, None, capacity_s)
                outcome = await run_workload(load, Workload("capacity", (group,)), seed, lambda record: None)
                rate_rps = _capacity_rps(outcome)
                num_refused = sum(map(is_refused, outcome.records))
                # What refuses in a closed loop idles in between: the capacity is then more than this.
                warning = f", {num_refused} were refused: take a lower --concurrency" if num_refused else ""
                console.print(
                    f"capacity {rate_rps:.2f} requests/s at {concurrency} concurrent{warning}", highlight=False
                )
            group = Group("overload", Poisson(rate_rps * factor), prompt_tokens, output_tokens, None, duration_s)
            return rate_rps, await _overload(load, url, group, seed, limits, idle)

        rate_rps, report = uvloop.run(measure())
    problems = missed(report, Bounds())
    _print(console, label or "overload", rate_rps * factor, report, limits, machine)
    for problem in problems:
        console.print(f"MISSED {problem}", style="red", highlight=False, markup=False)
    if json_file is not None:
        document = {
            "format_version": FORMAT_VERSION,
            "label": label,
            "command": command_line(sys.argv),
            "url": url,
            "machine": machine,
            "capacity_rps": rate_rps,
            "factor": factor,
            "duration_s": duration_s,
            "limits": limits,
            "report": report,
            "missed": problems,
        }
        with exit_status():
            write_json(document, json_file)
    if problems:
        raise typer.Exit(1)


async def _overload(
    load: Load, url: str, group: Group, seed: int, limits: Limits, idle: list[RequestRecord]
) -> OverloadReport:
    assert group.duration_s is not None
    await asyncio.sleep(SETTLE_S)
    before = await _computed_tokens(url, load.target.api_key)
    end_s = time.perf_counter() + group.duration_s
    running = asyncio.create_task(run_workload(load, Workload("overload", (group,)), seed, lambda record: None))
    await asyncio.sleep(group.duration_s)
    probes: list[RequestRecord] = []
    recovered = None
    while recovered is None and time.perf_counter() < end_s + GIVE_UP_S:
        probes += await _probe(load, "recovery", 1, len(probes))
        recovered = recovery_s(probes, idle, end_s)
    outcome = await running
    await asyncio.sleep(SETTLE_S)
    after = await _computed_tokens(url, load.target.api_key)
    computed = None
    if before is not None and after is not None:
        computed = after - before - sum(probe.prompt_tokens for probe in probes if probe.succeeded)
    return replace(report_of(outcome.records, limits, computed), recovery_s=recovered)


async def _probe(load: Load, name: str, count: int, first: int = 0) -> list[RequestRecord]:
    """Small requests, one after the other."""
    group = Group(name, Concurrency(1), 64, PROBE_OUTPUT_TOKENS)
    return [
        await send_request(load, group, index, build_body(load, group, index)) for index in range(first, first + count)
    ]


def _capacity_rps(outcome: Outcome) -> float:
    """Completions per second."""
    ends_s = [record.end_s for record in outcome.records if record.succeeded]
    return len(ends_s) / (max(ends_s) - outcome.start_s) if ends_s else 0.01


async def _computed_tokens(url: str, api_key: str) -> int | None:
    """What all prefill workers have computed so far; None when the server does not say, or not to this key."""

    def read() -> str:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        request = urllib.request.Request(url.rstrip("/") + "/metrics", headers=headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return str(answer.read(), "utf-8", "replace")

    try:
        lines = (await asyncio.to_thread(read)).splitlines()
    except OSError:
        return None
    found = [float(line.rpartition(" ")[2]) for line in lines if line.startswith(COMPUTED)]
    return int(sum(found)) if found else None


def _print(
    console: Console, title: str, offered_rps: float, report: OverloadReport, limits: Limits, machine: Machine
) -> None:
    def ms(values: Distribution) -> str:
        return "-" if values.p50 is None else f"p50 {values.p50:.1f}   p90 {values.p90:.1f}   p99 {values.p99:.1f} ms"

    def share(value: float | None) -> str:
        return "not known" if value is None else f"{value:.1%}"

    recovered = "never" if report.recovery_s is None else f"{report.recovery_s:.1f} s after the last arrival"
    console.print(f"{title} · Poisson {offered_rps:.2f}/s", style="bold", markup=False, highlight=False)
    for line in (
        f"admitted            {report.num_admitted} of {report.num_sent}, of which {report.num_failed} failed",
        f"refused             {report.num_sent - report.num_admitted}: {ms(report.refusal_ms)}",
        f"within the limits   {share(report.kept_share)} of the admitted: TTFT {limits.ttft_ms:g} ms, "
        f"TPOT {limits.tpot_ms:g} ms",
        f"  TTFT              {ms(report.ttft_ms)}",
        f"  TPOT              {ms(report.tpot_ms)}",
        f"prefill in vain     {share(report.wasted_share)} of {report.computed_tokens} tokens",
        f"recovery            {recovered} ({NUM_NORMAL} normal probes in a row)",
        f"{machine.num_cores} cores, {machine.cpu_model}, load {machine.load_1min}",
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(overload)
