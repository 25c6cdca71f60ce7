"""`python -m bench.scaling`: how work grows, as two tables and two plots.

1 to 32 concurrent requests on a real cluster; 1 to 4 workers of each role with simulated compute.
"""

import time
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console

from bench.compare.pdq_servers import pdq_servers
from bench.compare.run_server import running
from bench.exit_status import exit_status
from bench.machine import read_machine
from bench.markdown import markdown_table
from bench.marked_place import put_into
from bench.result import write_json
from bench.scaling.growth import (
    CONCURRENCIES,
    MAX_WORKERS,
    AtConcurrency,
    AtWorkers,
    at_concurrency,
    at_workers,
    borne_by_one,
    worker_counts,
)
from bench.scaling.plot import Series, line_chart
from errors import ConfigError
from settings.loading import load_settings

PARTS = ("concurrent", "workers")
console = Console(highlight=False, soft_wrap=True)


def main(
    only: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(PARTS)}; default: both.")] = None,
    plots: Annotated[Path | None, typer.Option(help="Directory for the plots.", file_okay=False)] = None,
    into: Annotated[Path | None, typer.Option(help="Put tables and plots into this Markdown file.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
    seed: Annotated[int, typer.Option(help="Of the prompts.")] = 1,
) -> None:
    """Measure how throughput and latency grow with load and with workers (about 6 minutes)."""
    parts = only or list(PARTS)
    machine = read_machine()
    with exit_status():
        if unknown := set(parts) - set(PARTS):
            raise ConfigError(f"{', '.join(sorted(unknown))}: parts are {', '.join(PARTS)}")
        if into is not None and plots is None:
            plots = into.parent
        loads = uvloop.run(_concurrencies(seed)) if "concurrent" in parts else []
        workers = uvloop.run(_workers(seed)) if "workers" in parts else []
        where = f"{machine.measured_at[:10]}, {machine.num_cores} cores of {machine.cpu_model}, client included"
        for name, found, text, chart in (
            ("concurrent", loads, _loads_table(loads), _loads_chart),
            ("workers", workers, _workers_table(workers), _workers_chart),
        ):
            if not found:
                continue
            console.print(text, markup=False)
            if plots is not None:
                (plots / f"scaling-{name}.svg").write_text(chart(loads, workers), encoding="utf-8")
            if into is not None:
                put_into(into, f"scaling {name}", f"{where}.\n\n{text}\n\n![](scaling-{name}.svg)")
        if json_file is not None:
            write_json({"machine": machine, "concurrent": loads, "workers": workers}, json_file)


async def _concurrencies(seed: int) -> list[AtConcurrency]:
    from engine.model_files import resolve_model  # converts the demo model the first time

    server = pdq_servers(resolve_model(load_settings().model, console.print))[0]
    found = []
    async with running(server) as this:
        for concurrency in CONCURRENCIES:
            began = time.monotonic()
            found.append(await at_concurrency(this, concurrency, seed))
            took_s = time.monotonic() - began
            console.print(f"{concurrency} concurrent in {took_s:.0f} s: {found[-1].output_tokens_per_s:.1f} tokens/s")
    return found


async def _workers(seed: int) -> list[AtWorkers]:
    found = []
    for num_prefill, num_decode in worker_counts():
        began = time.monotonic()
        found.append(await at_workers(num_prefill, num_decode, seed))
        console.print(
            f"{num_prefill} prefill, {num_decode} decode in {time.monotonic() - began:.0f} s: "
            f"{found[-1].requests_per_s:.1f} requests/s"
        )
    return found


def _loads_table(loads: list[AtConcurrency]) -> str:
    def ms(value: float | None) -> str:
        return "-" if value is None else f"{value:.1f}"

    rows = [
        (
            str(one.concurrency) + ("" if one.is_clean is not False else " (not clean)"),
            f"{one.output_tokens_per_s:.1f}",
            ms(one.ttft_p50_ms),
            ms(one.itl_p50_ms),
            str(one.num_failed),
        )
        for one in loads
    ]
    return markdown_table(("concurrent", "output tokens/s", "TTFT p50 ms", "ITL p50 ms", "failed"), rows)


def _loads_chart(loads: list[AtConcurrency], workers: list[AtWorkers]) -> str:
    points = [(float(one.concurrency), one.output_tokens_per_s) for one in loads]
    return line_chart(
        "Output tokens/s, 1 prefill + 1 decode worker",
        "concurrent requests",
        "output tokens/s",
        [Series("measured", points)],
    )


def _workers_table(workers: list[AtWorkers]) -> str:
    """Beside each figure its share of what the simulated times alone allow."""
    rows = [
        (
            str(one.num_prefill),
            str(one.num_decode),
            f"{one.requests_per_s:.1f}",
            f"{one.requests_per_s / _bound(one):.0%}",
            f"{one.busy_cores:.2f}",
            str(one.num_failed),
        )
        for one in workers
    ]
    header = ("prefill workers", "decode workers", "requests/s", "of what the steps allow", "cores busy", "failed")
    return markdown_table(header, rows)


def _workers_chart(loads: list[AtConcurrency], workers: list[AtWorkers]) -> str:
    both = [(one.num_prefill, one.requests_per_s) for one in workers if one.num_prefill == one.num_decode]
    prefill = [(one.num_prefill, one.requests_per_s) for one in workers if one.num_decode == MAX_WORKERS]
    decode = [(one.num_decode, one.requests_per_s) for one in workers if one.num_prefill == MAX_WORKERS]
    by_one = min(borne_by_one())
    ideal = [(number, number * by_one) for number in range(1, MAX_WORKERS + 1)]
    return line_chart(
        "Requests/s with simulated compute",
        "workers",
        "requests/s",
        [
            Series("n prefill, n decode", sorted(both)),
            Series(f"n prefill, {MAX_WORKERS} decode", sorted(prefill)),
            Series(f"{MAX_WORKERS} prefill, n decode", sorted(decode)),
            Series("the steps allow", ideal, is_dashed=True),
        ],
    )


def _bound(one: AtWorkers) -> float:
    prefill, decode = borne_by_one()
    return min(one.num_prefill * prefill, one.num_decode * decode)


if __name__ == "__main__":
    typer.run(main)
