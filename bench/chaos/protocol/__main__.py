"""`python -m bench.chaos.protocol --steps 1000000 --seed 1`: random episodes until so many steps are done.

Prints what happened and whether every promise was kept. A broken one is printed with its seed and its shortest trace;
`--episode SEED` lives that one again, `--mutants` breaks the protocol on purpose, each way until it is noticed. Needs
the development dependencies: the cluster's Redis is fakeredis. Exits with 1 when a promise is broken or a mutant lives.
"""

import argparse
import sys
import time
from collections import Counter

import structlog

from bench.chaos.protocol.episode import Failure, run_episode, shrunk
from bench.chaos.protocol.kinds import FAULTS
from bench.chaos.protocol.mutants import MUTANTS
from bench.chaos.protocol.world import World

PROGRESS_EVERY_S = 10.0


class Tally:
    """What the episodes did."""

    def __init__(self) -> None:
        self.began_s = time.perf_counter()
        self.kinds: Counter[str] = Counter()
        self.orders: set[int] = set()
        self.num_switches = self.num_requests = self.num_takes = self.num_tokens = 0
        self.num_episodes = 0
        self.virtual_s = 0.0

    def add(self, world: World) -> None:
        """The world has come to rest."""
        self.kinds.update(world.events)
        # Who did what, in order; the numbers of connections and choices aside.
        acts = [(kind, name.partition(" ")[0]) for kind, name, _ in world.trace]
        self.orders.add(hash(tuple(acts)))
        self.num_switches += sum(before[1] != after[1] for before, after in zip(acts, acts[1:], strict=False))
        self.num_episodes += 1
        self.num_requests += len(world.api.clients)
        self.num_takes += world.oracle.num_takes
        self.num_tokens += world.oracle.num_tokens
        self.virtual_s += world.clock.now_s

    @property
    def num_steps(self) -> int:
        """Events of all episodes."""
        return sum(self.kinds.values())

    def line(self) -> str:
        """How far we are."""
        seconds = time.perf_counter() - self.began_s
        return f"{self.num_steps:9,} steps, {self.num_episodes:,} episodes, {self.num_steps / seconds:,.0f} steps/s"

    def report(self) -> str:
        """All of it."""
        faults = sum(self.kinds[kind.name] for kind in FAULTS)
        rows = [
            f"steps          {self.num_steps:,} in {time.perf_counter() - self.began_s:.1f} s",
            f"interleavings  {len(self.orders):,} different ones of {self.num_episodes:,} episodes; "
            f"{self.num_switches:,} times another process went on",
            f"requests       {self.num_requests:,}, {self.num_tokens:,} events published, {self.num_takes:,} takes",
            f"faults         {faults:,} in {self.virtual_s:,.0f} s of the clusters' time",
            "by kind        " + ", ".join(f"{kind} {count:,}" for kind, count in self.kinds.most_common()),
        ]
        return "\n".join(rows)


def run(num_steps: int, seed: int) -> tuple[Tally, Failure | None]:
    """Episodes of seed, seed + 1, ... until `num_steps` are done or one fails."""
    tally, next_line_s = Tally(), time.perf_counter() + PROGRESS_EVERY_S
    while tally.num_steps < num_steps:
        failure = run_episode(seed + tally.num_episodes, tally.add)
        if failure is not None:
            return tally, failure
        if time.perf_counter() >= next_line_s:
            print(tally.line(), flush=True)
            next_line_s += PROGRESS_EVERY_S
    return tally, None


def explain(failure: Failure) -> str:
    """The failure, as short as it can be made."""
    short = shrunk(failure)
    events = "\n".join(f"  {kind:8} {name}  [{choice}]" for kind, name, choice in short.trace)
    return f"BROKEN in episode {failure.seed}: {failure.error}\n{short.shape}\nshortest trace, {short.error}:\n{events}"


def hunt(num_steps: int, seed: int) -> int:
    """Every mutant, until it is found; how many live after `num_steps`."""
    num_alive = 0
    for mutant in MUTANTS:
        with mutant.broken():
            tally, failure = run(num_steps, seed)
        if failure is None:
            num_alive += 1
            print(f"{mutant.name:24} LIVES after {tally.num_steps:,} steps: {mutant.what}", flush=True)
        else:
            steps = tally.num_steps + len(failure.trace)
            print(f"{mutant.name:24} found after {steps:9,} steps: {failure.error}", flush=True)
    return num_alive


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1_000_000, help="events to live through (per mutant)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the first episode")
    parser.add_argument("--episode", type=int, help="live this one episode alone")
    parser.add_argument("--mutants", action="store_true", help="break the protocol on purpose")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))  # what they log is no news here
    if options.mutants:
        return int(hunt(options.steps, options.seed) > 0)
    if options.episode is not None:
        tally, failure = run(1, options.episode)
    else:
        tally, failure = run(options.steps, options.seed)
    print(tally.report())
    if failure is not None:
        print(explain(failure))
        return 1
    print("verdict        every promise was kept")
    return 0


if __name__ == "__main__":
    sys.exit(main())
