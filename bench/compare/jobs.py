"""Every server with every model, in rounds, into one document.

Knows which servers a name stands for and who is measured with the 0.5B shape; the rest is `measure.py`.
"""

import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import uvloop

from bench.compare.document import DEMO, HALF_BILLION, Column, Document, write
from bench.compare.measure import Measurement
from bench.compare.pdq_servers import pdq_servers
from bench.compare.plan import HALF_BILLION_WORKLOADS, Plan
from bench.peers.server import Server
from bench.peers.shelf import PEERS, bench_cache, is_installed, servers_of
from bench.peers.workshop import PeerFailed
from settings.loading import load_settings

PDQ = "pdq"
HALF_BILLION_PEERS = ("vllm",)

Report = Callable[[str], None]


def measure_all(
    document: Document,
    plan: Plan,
    names: Sequence[str],
    has_half_billion: bool,
    json_file: Path | None,
    report: Report,
) -> None:
    """`names`: `pdq` and peers. A server that does not start is told of and left out. Raises PeerFailed."""
    began = time.monotonic()
    # As Ctrl-C: the server that runs is stopped first. Raised by a handler of its own, the interrupt would now and then
    # come up in a callback of the event loop, which takes it for that callback's failure.
    signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))

    def say(line: str) -> None:
        report(f"{time.monotonic() - began:5.0f} s  {line}")

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
    with tempfile.TemporaryDirectory(prefix="pdq-compare-caches-") as made:
        for round_ in range(plan.num_rounds):
            for server, model, model_dir, its_plan in jobs:
                say(f"round {round_ + 1} of {plan.num_rounds}: {server.name}, {model}")
                caches = Path(made) / server.name if its_plan.has_first_starts else None
                try:
                    uvloop.run(Measurement(document, its_plan, server, model, round_, say, caches).run(model_dir))
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
        command=" ".join(map(_elsewhere, server.command)),
        environment={name: _elsewhere(value) for name, value in server.environment.items()},
        versions=dict(server.versions),
    )


def _elsewhere(text: str) -> str:
    """As one would write it on another machine."""
    root = Path(__file__).parents[2]
    return text.replace(sys.executable, "python").replace(f"{root}/", "").replace(f"{Path.home()}/", "~/")
