"""`python -m bench.compare` (`make bench`): pdq and its peers in turn, the same client, the same prompts, one table.

A peer takes part when it is installed: `python -m bench.peers install vllm llama_cpp openvino`. Servers run one at a
time, each on all cores, in rounds: a machine whose speed drifts then drifts for all of them.
"""

import random
import shlex
import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console

from bench.compare.document import DEMO, FORMAT_VERSION, HALF_BILLION, Column, Document, read, write
from bench.compare.measure import Measurement
from bench.compare.pdq_servers import pdq_servers
from bench.compare.plan import HALF_BILLION_WORKLOADS, RATES, Plan, chosen
from bench.compare.write_up import table, write_up
from bench.exit_status import exit_status
from bench.machine import read_machine
from bench.marked_place import put_into
from bench.peers.server import Server
from bench.peers.shelf import PEERS, bench_cache, is_installed, servers_of
from bench.peers.workshop import PeerFailed
from bench.report import Limits
from bench.workload import PRESETS
from messages import ConfigError
from settings import load_settings

console = Console(highlight=False, soft_wrap=True)
PDQ = "pdq"
HALF_BILLION_PEERS = ("vllm",)

Report = Callable[[str], None]


def main(
    only: Annotated[
        list[str] | None, typer.Option(help=f"{PDQ} or a peer: {', '.join(PEERS)}; default: all that are installed.")
    ] = None,
    workload: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(PRESETS)}; default: all.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often every server is measured; figures are medians.")] = 1,
    rates: Annotated[str, typer.Option(help="W4: nominal requests/s to choose from.")] = ",".join(map(str, RATES)),
    quick: Annotated[bool, typer.Option(help="A fifth of each workload: to see that it works.")] = False,
    half_billion: Annotated[bool, typer.Option(help="The 0.5B shape too, W1 and W2, against vLLM.")] = True,
    first_starts: Annotated[bool, typer.Option(help="Start each with empty caches too.")] = True,
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
                command=f"python -m bench.compare {shlex.join(sys.argv[1:])}".strip(),
                machine=read_machine(),
                limits=Limits(ttft_slo_ms, tpot_slo_ms),
                arrival_seed=seed,
                prompt_seed=plan.prompt_seed,
            )
            _measure_all(document, plan, names, half_billion, json_file)
        console.print(table(document), markup=False)
        if into is not None:
            put_into(into, "comparison", write_up(document))


def _measure_all(
    document: Document, plan: Plan, names: Sequence[str], has_half_billion: bool, json_file: Path | None
) -> None:
    began = time.monotonic()

    def say(line: str) -> None:
        console.print(f"{time.monotonic() - began:5.0f} s  {line}", markup=False)

    for name in PEERS.keys() - set(names):
        say(f"without {name}" + ("" if is_installed(name) else f": python -m bench.peers install {name}"))
    from engine.model_files import resolve_model  # converts the demo model the first time

    demo_dir = resolve_model(load_settings().model, say)
    # One after the other, whatever the number of models: they share the cores.
    jobs = [(server, DEMO, demo_dir, plan) for server in _servers(names, demo_dir, say)]
    small = tuple(one for one in plan.workloads if one.name in HALF_BILLION_WORKLOADS)
    if has_half_billion and small:
        random_dir = bench_cache() / "models" / "qwen2-0.5b-random"
        if not random_dir.exists():
            say("making the 0.5B checkpoint")
        from bench.compare.half_billion import make_half_billion  # torch

        make_half_billion(random_dir, demo_dir)
        wanted = [name for name in names if name in (PDQ, *HALF_BILLION_PEERS)]
        short = Plan(small, plan.rates_rps, plan.num_rounds, False, plan.arrival_seed, plan.prompt_seed)
        found = [server for server in _servers(wanted, random_dir, say) if server.weights == "16-bit"]
        jobs += [(server, HALF_BILLION, random_dir, short) for server in found]
    document.columns += [_column(server, model) for server, model, _, _ in jobs]
    for round_ in range(plan.num_rounds):
        for server, model, model_dir, its_plan in jobs:
            say(f"round {round_ + 1} of {plan.num_rounds}: {server.name}, {model}")
            try:
                uvloop.run(Measurement(document, its_plan, server, model, round_, say).run(model_dir))
            except PeerFailed as error:  # the others are measured all the same
                say(str(error))
            document.took_s = time.monotonic() - began
            if json_file is not None:  # after each, so that an interrupted run is not lost
                write(document, json_file)
    say("done")


def _servers(names: Sequence[str], model_dir: Path, say: Report) -> list[Server]:
    servers = pdq_servers(model_dir) if PDQ in names else []
    for name in names:
        if name != PDQ:
            servers += servers_of(name, model_dir, say)
    return servers


def _column(server: Server, model: str) -> Column:
    return Column(
        server=server.name,
        model=model,
        weights=server.weights,
        is_peer=server.is_peer,
        command=shlex.join(server.command),
        environment=dict(server.environment),
        versions=dict(server.versions),
    )


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
