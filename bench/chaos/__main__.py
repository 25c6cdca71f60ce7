"""`python -m bench.chaos` (`make chaos`): kill, stop and slow everything, cancel en masse, damage what is handed over.

Prints a line per part as it goes and one table at the end; exits with 1 when anything is not as it must be.
"""

import asyncio
import time
from contextlib import AsyncExitStack
from typing import Annotated

import typer
from rich.console import Console

from bench.chaos.cancels import cancels
from bench.chaos.cluster import ChaosCluster
from bench.chaos.handoff_damage import damage
from bench.chaos.matrix import CellResult, cells, matrix
from bench.chaos.storm import NUM_MEMBERS, STEP_S, storm
from bench.chaos.table import Row, cancels_rows, handoff_rows, matrix_rows, storm_rows
from bench.exit_status import exit_status
from bench.markdown import markdown_table
from bench.step_bar import StepBar
from settings.observability import LogSettings
from telemetry import configure_logging

PARTS = ("storm", "matrix", "handoff", "cancels")
CLUSTERS = 3  # cells of the matrix at a time; most of a cell is waiting
console = Console(highlight=False)


def main(
    streams: Annotated[int, typer.Option(min=1, help="Streams of the storm.")] = 500,
    kills: Annotated[int, typer.Option(min=0, help="SIGKILLs of the storm.")] = 200,
    faults: Annotated[int, typer.Option(min=0, help="Faults in the handoff.")] = 10_000,
    cancelled: Annotated[int, typer.Option(min=0, help="Requests that are cancelled.")] = 10_000,
    afterwards: Annotated[int, typer.Option(min=0, help="Requests after them.")] = 1_000,
    only: Annotated[list[str] | None, typer.Option(help=f"Parts to run: {', '.join(PARTS)}; default: all.")] = None,
    seed: Annotated[int, typer.Option(help="Of every random choice.")] = 1,
) -> None:
    """Show that nothing is lost, whoever dies."""
    parts = tuple(only or PARTS)
    if unknown := set(parts) - set(PARTS):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: parts are {', '.join(PARTS)}")
    configure_logging(LogSettings(level="error"))  # of this process; the cluster's logs are files
    began = time.monotonic()
    with exit_status():
        rows, is_passed = asyncio.run(_run(parts, streams, kills, faults, cancelled, afterwards, seed))
    console.print(markdown_table(("what", "bound", "measured"), rows), soft_wrap=True, markup=False)
    console.print(f"{time.monotonic() - began:.0f} s, seed {seed}: {'passed' if is_passed else 'FAILED'}")
    raise typer.Exit(0 if is_passed else 1)


async def _run(
    parts: tuple[str, ...], streams: int, kills: int, faults: int, cancelled: int, afterwards: int, seed: int
) -> tuple[list[Row], bool]:
    rows: list[Row] = []
    passed = []
    async with AsyncExitStack() as stack:
        first, *others = [await stack.enter_async_context(ChaosCluster(NUM_MEMBERS, STEP_S)) for _ in range(CLUSTERS)]
        if "storm" in parts:
            with StepBar(console, "storm", streams) as bar:
                stormed = await storm(first, streams, kills, seed, bar.advance)
            rows += storm_rows(stormed)
            passed.append(stormed.is_passed)
            await first.wait_well()
        if "matrix" in parts:
            which = list(cells())
            with StepBar(console, "matrix", len(which)) as bar:
                results = await matrix([first, *others], which, lambda result: _note_cell(result, bar))
            rows += matrix_rows(results)
            passed.append(not any(result.problem for result in results))
            await first.wait_well()
        if "handoff" in parts:
            with StepBar(console, "handoff", faults) as bar:
                counts = await asyncio.to_thread(damage, faults, seed, on_fault=bar.advance)
            rows += handoff_rows(counts)
            passed.append(not any(some.wrong or some.broken for some in counts.values()))
        if "cancels" in parts:
            with StepBar(console, "cancels", cancelled + afterwards) as bar:
                cancels_result = await cancels(first, cancelled, afterwards, seed, bar.advance)
            rows += cancels_rows(cancels_result)
            passed.append(cancels_result.is_passed)
    return rows, all(passed)


def _note_cell(result: CellResult, bar: StepBar) -> None:
    bar.advance()
    if result.problem:
        console.print(f"FAILED {result.cell}: {result.problem}", markup=False)


if __name__ == "__main__":
    typer.run(main)
