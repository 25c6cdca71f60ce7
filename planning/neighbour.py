"""`python -m planning.neighbour prefill|decode THREADS`: computes such steps until its standard input ends.

The other worker of a host while steps are measured: it keeps its cores and its part of the memory's bandwidth busy.
Writes one line once it computes.
"""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from typing import Literal

from errors import StartupError

Kind = Literal["prefill", "decode"]
CONTEXT, BATCH = 256, 8
START_FAILED = 1


@contextmanager
def busy_neighbour(kind: Kind, num_threads: int) -> Iterator[None]:
    """While entered, another process computes on so many threads; with 0 there is none. Raises StartupError."""
    if num_threads < 1:
        yield
        return
    command = [sys.executable, "-m", "planning.neighbour", kind, str(num_threads)]
    with Popen(command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, cwd=Path(__file__).parents[1]) as child:
        assert child.stdin is not None and child.stdout is not None
        try:
            if not child.stdout.readline():
                raise StartupError(f"a neighbour that computes {kind} steps ended with code {child.wait()}")
            yield
        finally:
            child.stdin.close()


def main(kind: Kind, num_threads: int) -> None:
    """Until standard input ends."""
    from planning.step_bench import StepBench
    from settings.loading import load_settings

    def watch() -> None:
        sys.stdin.buffer.read()
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
    settings = load_settings()
    bench = StepBench(settings, lambda line: None)
    bench.use_threads(num_threads)
    budget = settings.prefill.token_budget_on(bench.device.type)
    is_told = False
    while True:
        if kind == "prefill":
            bench.prefill_s(budget, CONTEXT)
        else:
            bench.decode_s(BATCH, CONTEXT)
        if not is_told:
            sys.stdout.write("computing\n")
            sys.stdout.flush()
            is_told = True


if __name__ == "__main__":
    main("prefill" if sys.argv[1] == "prefill" else "decode", int(sys.argv[2]))
