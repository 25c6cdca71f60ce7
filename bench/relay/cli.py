"""`pdq bench relay` on the command line: options, the order of the cases, one table.

Starts its own redis-server, API process and simulated worker; needs no server and no GPU.
"""

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from bench.exit_status import exit_status
from bench.machine import read_machine
from bench.markdown import markdown_table
from bench.options import JsonFile
from bench.relay.case import FLAT_OUT_STREAMS, PRESET_STREAMS, RATE_TOKENS_PER_S, flat_out, paced
from bench.relay.cluster import running_cluster
from bench.relay.latency import Result
from bench.relay.measure import measure
from bench.result import FORMAT_VERSION, command_line, write_json
from settings.loading import load_settings

HEADER = (
    "streams",
    "step ms",
    "tokens/s",
    "p50 ms",
    "p90 ms",
    "p99 ms",
    "max ms",
    "API us/token",
    "Redis us/token",
    "worker us/token",
    "client us/token",
    "round trips/step",
)


def relay(
    streams: Annotated[
        list[int] | None,
        typer.Option(min=1, help=f"Streams of a paced case; may be repeated. Default: {PRESET_STREAMS}."),
    ] = None,
    rate: Annotated[float, typer.Option(min=1, help="Tokens/s of the paced cases.")] = RATE_TOKENS_PER_S,
    duration_s: Annotated[float, typer.Option(min=0.1, help="Of each paced case.")] = 8.0,
    flat_out_streams: Annotated[int, typer.Option(min=0, help="Streams of the case without pace; 0: none.")] = (
        FLAT_OUT_STREAMS
    ),
    flat_out_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the case without pace.")] = 150_000,
    model: Annotated[str | None, typer.Option(help="Whose tokenizer is used; default: PDQ_MODEL__PATH.")] = None,
    json_file: JsonFile = None,
) -> None:
    """From the decode step to the SSE byte: simulated workers, real Redis, one real API process, one client.

    A worker without a model appends a token per stream and step as a decode worker does; each token is stamped before
    that and matched with the arrival of its SSE frame at the client. Every stream is checked: all tokens, in order,
    each once. Exit status 1 when one is not so.
    """
    console = Console()
    machine = read_machine()
    cases = [paced(number, duration_s, rate) for number in streams or PRESET_STREAMS]
    if flat_out_streams:
        cases.append(flat_out(flat_out_streams, flat_out_tokens))
    with exit_status():
        with running_cluster(_model_dir(model, console)) as cluster:
            measure(cluster, paced(FLAT_OUT_STREAMS, 0.5))  # warms up; in no figure
            results = [measure(cluster, case) for case in cases]
    print(markdown_table(HEADER, [row_of(result) for result in results]))
    console.print(f"\n{machine.num_cores} cores, {machine.cpu_model}, load {machine.load_1min}", highlight=False)
    if json_file is not None:
        document = {
            "format_version": FORMAT_VERSION,
            "command": command_line(sys.argv),
            "machine": machine,
            "results": [msgspec.to_builtins(result) for result in results],
        }
        with exit_status():
            write_json(document, json_file)


def row_of(result: Result) -> tuple[str, ...]:
    """A row under HEADER."""
    case, cpu = result.case, result.cpu_us_per_token
    return (
        case.name,
        f"{case.step_s * 1000:.1f}" if case.step_s else "-",
        f"{result.tokens_per_s:,.0f}",
        *(f"{value:.2f}" for value in (result.p50_ms, result.p90_ms, result.p99_ms, result.max_ms)),
        *(f"{cpu[name]:.1f}" for name in ("api", "redis", "worker", "client")),
        f"{result.round_trips_per_step:.2f}",
    )


def _model_dir(model: str | None, console: Console) -> Path:
    from engine.model_files import resolve_model

    settings = load_settings({"model": {"path": model}} if model else None)
    return resolve_model(settings.model, lambda line: console.print(line, style="dim", markup=False))
