"""`pdq bench`: the load generator on the command line. `cli/` includes `app`.

This file knows options and the order of a run; what is sent, counted, computed and printed lives beside it.
"""

import sys
from typing import Annotated

import typer
import uvloop
from rich.console import Console

from bench.exit_status import exit_status
from bench.http_stream import resolve
from bench.load import Load, Outcome, run_workload
from bench.machine import CpuClock, CpuUse, read_machine
from bench.options import (
    DEFAULT_URL,
    ApiKey,
    ArrivalSeed,
    Duration,
    ExtraBody,
    IdleTimeout,
    InFlight,
    JsonFile,
    Label,
    MaxTokenId,
    MinTokenId,
    ModelName,
    NumRequests,
    OutputTokens,
    Preset,
    PromptSeed,
    PromptTokens,
    RequestRate,
    Style,
    StyleName,
    TokenizerFile,
    Url,
    wire_style,
)
from bench.overload import overload
from bench.prompts import PromptSource, prompt_source
from bench.queue_path_cli import queue_path
from bench.relay.cli import relay
from bench.report import Limits, summarize
from bench.result import FORMAT_VERSION, Run, command_line, raw_times, write_json
from bench.step_bar import StepBar
from bench.table import print_run
from bench.wire_style import WireStyle
from bench.workload import Overrides, Workload, build_workload, warmup_of

app = typer.Typer(help="Measure a server: load, latencies, goodput.", invoke_without_command=True)
app.command("queue-path")(queue_path)
app.command("overload")(overload)
app.command("relay")(relay)


@app.callback()
def bench(
    context: typer.Context,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = "",
    style: Style = StyleName.LIGHTLLM,
    model: ModelName = "",
    extra_body: ExtraBody = "",
    tokenizer: TokenizerFile = None,
    workload: Annotated[Preset | None, typer.Option(help="Preset; the options below change it.")] = None,
    concurrency: InFlight = None,
    request_rate: RequestRate = None,
    num_requests: NumRequests = None,
    duration_s: Duration = None,
    prompt_tokens: PromptTokens = None,
    output_tokens: OutputTokens = None,
    shared_prefix_tokens: Annotated[
        int | None, typer.Option(min=0, help="Of the prompt, equal in all requests (prefix caches help).")
    ] = None,
    ttft_slo_ms: Annotated[float, typer.Option(min=0, help="Goodput: limit of TTFT.")] = 1000.0,
    tpot_slo_ms: Annotated[float, typer.Option(min=0, help="Goodput: limit of TPOT.")] = 60.0,
    warmup: Annotated[int, typer.Option(min=0, help="Requests sent before, in no figure.")] = 2,
    seed: ArrivalSeed = 0,
    prompt_seed: PromptSeed = None,
    min_token_id: MinTokenId = 1000,
    max_token_id: MaxTokenId = 30000,
    idle_timeout_s: IdleTimeout = 120.0,
    server_pid: Annotated[int | None, typer.Option(help="Root process of the server, to tell its CPU apart.")] = None,
    json_file: JsonFile = None,
    label: Label = "",
) -> None:
    """Send a workload to a server and report TTFT, ITL, TPOT, E2E, throughput and goodput.

    Exit status: 0 when a request succeeded, 1 when none did, 2 when an option does not fit.
    """
    if context.invoked_subcommand is not None:
        return
    console = Console()
    limits = Limits(ttft_slo_ms, tpot_slo_ms)
    overrides = Overrides(
        concurrency, request_rate, num_requests, duration_s, prompt_tokens, output_tokens, shared_prefix_tokens
    )
    machine = read_machine()
    with exit_status():
        prompts = prompt_source(prompt_seed, min_token_id, max_token_id)
        wire = wire_style(style, model, extra_body, tokenizer)
        chosen = build_workload(workload.value if workload else None, overrides)
        outcome, cpu = uvloop.run(
            _measure(console, url, api_key, wire, prompts, idle_timeout_s, chosen, seed, warmup, server_pid)
        )
    summaries = [summarize(group, outcome.records, outcome.start_s, limits) for group in chosen.groups]
    print_run(console, label, chosen, summaries, limits, cpu, machine)
    if json_file is not None:
        run = Run(
            format_version=FORMAT_VERSION,
            label=label,
            command=command_line(sys.argv),
            url=url,
            style=style.value,
            workload=chosen,
            arrival_seed=seed,
            prompt_seed=prompts.seed,
            num_warmup=warmup,
            limits=limits,
            machine=machine,
            cpu=cpu,
            summaries=summaries,
            requests=raw_times(outcome.records, outcome.start_s),
        )
        with exit_status():
            write_json(run, json_file)
    if not any(summary.num_succeeded for summary in summaries):
        raise typer.Exit(1)


async def _measure(
    console: Console,
    url: str,
    api_key: str,
    wire: WireStyle,
    prompts: PromptSource,
    idle_timeout_s: float,
    workload: Workload,
    seed: int,
    num_warmup: int,
    server_pid: int | None,
) -> tuple[Outcome, CpuUse]:
    """Warm up, then the measured phase."""
    load = Load(await resolve(url, wire.PATH, api_key), wire, prompts, idle_timeout_s)
    if num_warmup:
        warmed = await run_workload(load, warmup_of(workload, num_warmup), seed, lambda record: None)
        failures = [record.failure for record in warmed.records if record.failure is not None]
        if failures:
            first = f"{failures[0].kind} {failures[0].detail}"
            text = f"warm-up: {len(failures)} of {num_warmup} requests failed, e.g. {first}"
            console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)
    counts = [group.num_requests for group in workload.groups]
    total = None if None in counts else sum(number for number in counts if number is not None)
    with StepBar(console, "requests", total) as bar:
        clock = CpuClock(server_pid)
        outcome = await run_workload(load, workload, seed, bar.advance)
        return outcome, clock.read()
