"""The kinds of events, as a table. A new kind is two functions and a line here.

Knows how an event happens to a world and is written down; knows no promise.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.chaos.protocol import clients, faults, progress
from bench.chaos.protocol.world import Event, World


@dataclass(frozen=True)
class Kind:
    """`candidates(world)`: to whom it could happen now. `happen(world, candidate, choice)`: it does; `choice` is any
    number, for what else there is to choose. `weight`: how often a random driver takes it.
    """

    name: str
    weight: float
    candidates: Callable[[World], Sequence[Any]]
    happen: Callable[[World, Any, int], None]


PROGRESS = (
    Kind("serve", 300, progress.unserved, progress.serve),
    Kind("deliver", 300, progress.undelivered, progress.deliver),
    Kind("thread", 200, progress.waiting_threads, progress.go_on),
    Kind("timer", 150, progress.due_timers, progress.run_timers),
    Kind("beat", 60, progress.due_beats, progress.beat),
    Kind("tick", 25, progress.next_moment, progress.tick),
)
CLIENTS = (
    Kind("create", 150, clients.newcomers, clients.create),
    Kind("leave", 1, clients.who_may_leave, clients.leave),
    Kind("stop", 1, clients.who_may_stop, clients.stop),
)
FAULTS = (
    Kind("leap", 2, faults.leaps, faults.leap),
    Kind("crash", 2, faults.everybody, faults.crash),
    Kind("start", 8, faults.missing_roles, faults.start),
    Kind("drain", 2, faults.who_may_drain, faults.drain),
    Kind("freeze", 3, faults.not_frozen, faults.freeze),
    Kind("nap", 4, faults.not_frozen, faults.nap),
    Kind("thaw", 5, faults.frozen, faults.thaw),
    Kind("lose", 4, faults.answered_links, faults.lose),
    Kind("cut", 3, faults.waiting_links, faults.cut),
    Kind("vanish", 2, faults.orphans, faults.vanish),
    Kind("restart", 0.3, faults.the_redis, faults.restart),
)
KINDS = {kind.name: kind for kind in (*PROGRESS, *CLIENTS, *FAULTS)}


def happen(world: World, kind: Kind, candidate: Any, choice: int) -> None:
    """The event, and what must hold after it. Raises AssertionError."""
    world.events[kind.name] += 1
    world.trace.append((kind.name, str(candidate), choice))
    kind.happen(world, candidate, choice)
    world.check()


def pick(world: World, kind: Kind, number: int) -> bool:
    """Let it happen to one of its candidates; False when there is none. Raises AssertionError."""
    candidates = kind.candidates(world)
    if candidates:
        happen(world, kind, candidates[number % len(candidates)], number // len(candidates))
    return bool(candidates)


def repeat(world: World, event: Event) -> bool:
    """An event of a trace, if it can happen now. Raises AssertionError."""
    name, whom, choice = event
    kind = KINDS[name]
    for candidate in kind.candidates(world):
        if str(candidate) == whom:
            happen(world, kind, candidate, choice)
            return True
    return False
