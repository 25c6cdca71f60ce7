"""`pdq plan`: how many workers a load needs, and what they would make of it. `cli/` includes `app`.

This file knows options and the order of things; what is simulated, measured and printed lives beside it.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench.exit_status import exit_status
from bench.options import (
    ArrivalSeed,
    Duration,
    InFlight,
    JsonFile,
    NumRequests,
    OutputTokens,
    Preset,
    PromptTokens,
    RequestRate,
)
from bench.report import Limits
from bench.result import write_json
from bench.table import describe as describe_group
from bench.workload import Overrides, build_workload
from errors import ConfigError
from planning.costs import read_costs, write_costs
from planning.forecast import Bounds, Objective, recommended, search
from planning.load import Groups, Load, read_trace
from planning.progress import Progress
from planning.table import print_plan, print_way
from settings.loading import Settings, load_settings

COSTS_NAME = "plan-costs.json"

app = typer.Typer(help="How many prefill and decode workers a load needs.", invoke_without_command=True)

CostsFile = Annotated[
    Path | None,
    typer.Option("--costs", help="Cost file that `pdq plan measure` wrote.", show_default="in PDQ_MODEL__CACHE_DIR"),
]


@app.callback()
def plan(
    context: typer.Context,
    costs_file: CostsFile = None,
    workload: Annotated[Preset | None, typer.Option(help="Preset of `pdq bench`; the options below change it.")] = None,
    trace: Annotated[
        Path | None, typer.Option(help="JSON lines of arrival_s, prompt_tokens, output_tokens, in place of a workload.")
    ] = None,
    concurrency: InFlight = None,
    request_rate: RequestRate = None,
    num_requests: NumRequests = None,
    duration_s: Duration = None,
    prompt_tokens: PromptTokens = None,
    output_tokens: OutputTokens = None,
    seed: ArrivalSeed = 0,
    ttft_slo_ms: Annotated[float, typer.Option(min=0, help="Limit of TTFT.")] = 1000.0,
    tpot_slo_ms: Annotated[float, typer.Option(min=0, help="Limit of TPOT.")] = 60.0,
    share: Annotated[float, typer.Option(min=0, max=1, help="Share of requests within both limits.")] = 0.9,
    max_prefill: Annotated[int, typer.Option(min=1, max=256, help="Most prefill workers to try.")] = 8,
    max_decode: Annotated[int, typer.Option(min=1, max=256, help="Most decode workers to try.")] = 8,
    hosts: Annotated[int, typer.Option(min=1, help="Hosts that workers on CPUs are dealt over.")] = 1,
    json_file: JsonFile = None,
) -> None:
    """Simulate a load on clusters of growing size and name the smallest that keeps the limits.

    Exit status: 0 when one does, 1 when none of those tried does, 2 when an option or a file does not fit.
    """
    if context.invoked_subcommand is not None:
        return
    console = Console()
    overrides = Overrides(concurrency, request_rate, num_requests, duration_s, prompt_tokens, output_tokens)
    objective = Objective(Limits(ttft_slo_ms, tpot_slo_ms), share)
    with exit_status():
        settings = load_settings()
        costs = read_costs(costs_path(costs_file, settings))
        description, make_load = chosen_load(workload, trace, overrides, seed)
        with Progress(console) as progress:
            forecasts = search(
                costs,
                settings,
                make_load,
                objective,
                Bounds(max_prefill, max_decode, hosts),
                lambda size: progress.begin(f"simulating {size.num_prefill} prefill and {size.num_decode} decode"),
                progress.count,
            )
    print_plan(console, costs, description, objective, forecasts)
    if json_file is not None:
        with exit_status():
            write_json({"load": description, "objective": objective, "forecasts": forecasts}, json_file)
    if recommended(forecasts) is None:
        raise typer.Exit(1)


@app.command()
def measure(
    costs_file: CostsFile = None,
    url: Annotated[
        str | None,
        typer.Option(
            help="An idle server of one worker of each role, of this model and machine; else `pdq serve` is started."
        ),
    ] = None,
    keep_steps: Annotated[
        bool, typer.Option("--keep-steps", help="Measure only the way; steps are the file's.")
    ] = False,
) -> None:
    """Measure what steps of PDQ_MODEL__PATH cost here, and the way around them. Wants the machine for itself."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with exit_status():
        from planning.way_server import measured_way

        settings = load_settings()
        path = costs_path(costs_file, settings)
        path.parent.mkdir(parents=True, exist_ok=True)
        with Progress(console) as progress:
            if keep_steps:
                costs = read_costs(path)
            else:
                from planning.measure import measure_steps  # torch

                costs = measure_steps(settings, settings.model.path, progress.begin)
                write_costs(costs, path)  # so that a server that does not answer costs no second measurement
            costs = asyncio.run(measured_way(costs, settings, url, progress.begin))
        write_costs(costs, path)
    print_way(Console(), costs.way)
    typer.echo(str(path))


def costs_path(given: Path | None, settings: Settings) -> Path:
    """Where the cost file is."""
    return given or settings.model.cache_dir.expanduser() / COSTS_NAME


def chosen_load(
    preset: Preset | None, trace: Path | None, overrides: Overrides, seed: int
) -> tuple[str, Callable[[], Load]]:
    """(what it is in words, a maker of it, as each simulation uses one up). Raises ConfigError on what does not fit."""
    if trace is not None:
        if preset is not None or overrides != Overrides():
            raise ConfigError("--trace says all of the load: give no --workload and no option of one beside it")
        read = read_trace(trace)
        return f"{trace.name}, {len(read.requests)} requests", lambda: read
    workload = build_workload(preset.value if preset else None, overrides)
    words = "; ".join(describe_group(group) for group in workload.groups)
    return f"{workload.name}: {words}", lambda: Groups(workload.groups, seed)
