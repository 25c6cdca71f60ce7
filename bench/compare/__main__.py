"""`python -m bench.compare` (`make bench`): pdq and its peers in turn, the same client, the same prompts, one table.

A peer takes part when it is installed: `python -m bench.peers install vllm llama_cpp openvino`. Servers run one at a
time, each on all cores, in rounds: a machine whose speed drifts then drifts for all of them.
"""

import random
import shlex
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench.compare.document import FORMAT_VERSION, Document, read
from bench.compare.jobs import PDQ, measure_all
from bench.compare.plan import RATES, Plan, chosen
from bench.compare.write_up import table, write_up
from bench.exit_status import exit_status
from bench.machine import read_machine
from bench.marked_place import put_into
from bench.peers.shelf import PEERS, is_installed
from bench.report import Limits
from bench.workload import PRESETS
from errors import ConfigError

console = Console(highlight=False, soft_wrap=True)


def main(
    only: Annotated[
        list[str] | None, typer.Option(help=f"{PDQ} or a peer: {', '.join(PEERS)}; default: all that are installed.")
    ] = None,
    workload: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(PRESETS)}; default: all.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often every server is measured; figures are medians.")] = 1,
    rates: Annotated[str, typer.Option(help="W4: nominal requests/s to choose from.")] = ",".join(map(str, RATES)),
    quick: Annotated[bool, typer.Option(help="A fifth of each workload: to see that it works.")] = False,
    half_billion: Annotated[bool, typer.Option(help="The 0.5B shape too, W1 and W2, against vLLM.")] = True,
    first_starts: Annotated[bool, typer.Option(help="Start each with empty caches first.")] = True,
    ttft_slo_ms: Annotated[float, typer.Option(min=0, help="Limit of TTFT.")] = 1000.0,
    tpot_slo_ms: Annotated[float, typer.Option(min=0, help="Limit of TPOT.")] = 60.0,
    seed: Annotated[int, typer.Option(help="Of the arrivals.")] = 0,
    prompt_seed: Annotated[int | None, typer.Option(help="Of the prompts; default: a fresh one.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything to this file.")] = None,
    from_file: Annotated[
        Path | None, typer.Option("--from", help="Measure nothing: print the table of this file.")
    ] = None,
    into: Annotated[Path | None, typer.Option(help="Put the table into this Markdown file, between its marks.")] = None,
) -> None:
    """Measure pdq and its peers one after the other, and print one table."""
    with exit_status():
        if from_file is not None:
            document = read(from_file)
        else:
            plan = Plan(
                workloads=chosen(_known(workload or list(PRESETS), PRESETS), quick),
                rates_rps=_rates(rates),
                num_rounds=rounds,
                has_first_starts=first_starts,
                arrival_seed=seed,
                prompt_seed=random.SystemRandom().getrandbits(31) if prompt_seed is None else prompt_seed,
            )
            names = _known(only or [PDQ, *filter(is_installed, PEERS)], [PDQ, *PEERS])
            document = Document(
                format_version=FORMAT_VERSION,
                command=shlex.join(["python", "-m", "bench.compare", *_without_files(sys.argv[1:])]),
                machine=read_machine(),
                limits=Limits(ttft_slo_ms, tpot_slo_ms),
                arrival_seed=seed,
                prompt_seed=plan.prompt_seed,
            )
            measure_all(document, plan, names, half_billion, json_file, _say)
        console.print(table(document), markup=False)
        if into is not None:
            put_into(into, "comparison", write_up(document))


def _say(line: str) -> None:
    console.print(line, markup=False)


def _without_files(arguments: Sequence[str]) -> list[str]:
    """The options that decide what is measured: not where it is written."""
    kept, skips = [], False
    for argument in arguments:
        name, has_value, _ = argument.partition("=")
        if name in ("--json", "--into"):
            skips = not has_value
        elif skips:
            skips = False
        else:
            kept.append(argument)
    return kept


def _known(names: Sequence[str], all_names: Collection[str]) -> list[str]:
    if unknown := set(names) - set(all_names):
        raise ConfigError(f"{', '.join(sorted(unknown))}: there are {', '.join(all_names)}")
    return list(names)


def _rates(text: str) -> tuple[float, ...]:
    try:
        rates = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--rates {text!r}: must be numbers with commas between them") from None
    if min(rates) <= 0:
        raise ConfigError(f"--rates {text!r}: must be above 0")
    return rates


if __name__ == "__main__":
    typer.run(main)
