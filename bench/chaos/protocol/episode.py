"""One world from birth to rest under random events; the same again from its trace, and shorter.

An episode is a function of its seed. Rare combinations come up sooner if not everything happens equally often: each
episode leaves some kinds of faults out and has more of others, and for a while at a time one process runs and the
others hardly do. Knows no invariant.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.chaos.protocol.kinds import CLIENTS, FAULTS, KINDS, PROGRESS, pick, repeat
from bench.chaos.protocol.rest import settle
from bench.chaos.protocol.shape import MAX_ATTEMPTS, Shape
from bench.chaos.protocol.world import Event, World

NUM_EVENTS = 1500  # before an episode settles
_SHARES = (0.0, 0.3, 1.0, 3.0)
_AT_WORK = ("crash", "freeze", "nap")  # happen to workers that have something to lose, mostly
_DRAIN_SHARE = 0.001  # how often somebody is told to stop in the middle of decoding
_FAVOUR_EVENTS = 60  # at most; how long one process is preferred
_STARVE_EVENTS = 200  # at most; how long one does not get to run


@dataclass(frozen=True)
class Failure:
    """How an episode broke a promise."""

    seed: int
    shape: Shape
    trace: list[Event]  # up to where it was to settle, or failed
    error: AssertionError


def random_shape(source: random.Random) -> Shape:
    """Pools that are tight in different places."""
    return Shape(
        prefill_blocks=source.choice((8, 10, 14)),
        decode_blocks=source.choice((8, 9, 12, 16)),
        token_budget=source.choice((1, 3, 8)),
        prefill_running=source.choice((1, 3)),
        decode_running=source.choice((1, 2, 4)),
        max_offers=source.choice((5, 8, 16)),
        max_deliveries=source.choice((MAX_ATTEMPTS, MAX_ATTEMPTS, 2)),
        prefix_cache=source.random() < 0.7,
        checksums=source.random() < 0.3,
        decode_exports=source.random() < 0.7,
        secret=source.choice((b"", b"sixteen bytes or more")),
        local_prefill=source.choice(("never", "auto", "auto", "always")),
    )


class _Driver:
    """Chooses the events of one episode."""

    def __init__(self, source: random.Random) -> None:
        self._source = source
        self._kinds = list(KINDS.values())
        may_be_left_out = {kind.name for kind in (*CLIENTS, *FAULTS)} - {"create"}
        self._weights = [
            kind.weight * source.choice(_SHARES if kind.name in may_be_left_out else _SHARES[1:])
            for kind in self._kinds
        ]
        self._favours = source.random() < 0.7
        self._favourite, self._left = "", 0
        self._starved, self._left_starved = "", 0

    def step(self, world: World) -> None:
        """One event, if one of the chosen kind can happen."""
        source = self._source
        kind = source.choices(self._kinds, self._weights)[0]
        whom = [str(one) for one in kind.candidates(world)]
        if self._left == 0:
            self._favourite = source.choice([str(world.api.process), *map(str, world.workers)]) if self._favours else ""
            self._left = source.randrange(1, _FAVOUR_EVENTS)
        self._left -= 1
        self._left_starved -= 1
        if self._left_starved < 0:
            self._starve(world)
        if self._starved and source.random() < 0.3:
            decoding = [str(worker) for worker in world.busy if worker.has_decoded_from(self._starved)]
            if decoding:
                repeat(world, ("crash", source.choice(decoding), source.getrandbits(1)))
                repeat(world, ("nap", self._starved, 0))
                return
        if kind in PROGRESS and self._starved:
            whom = [name for name in whom if not name.startswith(self._starved)]
        if kind in PROGRESS and source.random() < 0.9:
            whom = [name for name in whom if name.startswith(self._favourite) or name == "next"]
        if kind.name in _AT_WORK and source.random() < 0.7:
            whom = [str(worker) for worker in (*world.busy, *(one for one in world.busy if one.is_pulling))]
        if kind.name == "drain" or source.random() < _DRAIN_SHARE:
            kind = KINDS["drain"]
            whom = [str(worker) for worker in world.workers if worker.is_decoding] or whom
        if whom:
            name = source.choice(whom)
            if repeat(world, (kind.name, name, source.getrandbits(32))) and kind.name == "drain":
                # A step that takes its time: else everything has ended before the worker comes to hand it on.
                self._starved, self._left_starved = f"{name} compute", source.randrange(_STARVE_EVENTS)

    def _starve(self, world: World) -> None:
        """Whoever is in the middle of a pull may have to wait there, and what it pulls may be given up meanwhile; who
        has offered may hear late what became of it, and whoever pulled it be dead by then."""
        source = self._source
        self._starved = ""
        pulling = [str(worker) for worker in world.workers if worker.is_pulling]
        offering = [str(worker) for worker in world.workers if worker.num_offers]
        if pulling and source.random() < 0.2:
            self._starved, self._left_starved = source.choice(pulling), source.randrange(_STARVE_EVENTS)
            if source.random() < 0.5:
                pick(world, KINDS["leave"], source.getrandbits(32))
        elif offering and source.random() < 0.01:
            self._starved, self._left_starved = source.choice(offering), source.randrange(_STARVE_EVENTS)


def run_episode(seed: int, on_world: Callable[[World], None] = lambda world: None) -> Failure | None:
    """Live an episode; how it failed, if it did. `on_world` sees the world at its end."""
    source = random.Random(seed)
    shape = random_shape(source)
    driver = _Driver(source)
    before_rest: int | None = None
    with World(shape) as world:
        try:
            while world.num_events < NUM_EVENTS:
                driver.step(world)
            before_rest = len(world.trace)
            settle(world, random.Random(0).randrange)
        except AssertionError as error:
            return Failure(seed, shape, world.trace[:before_rest], error)
        on_world(world)
    return None


def replay(shape: Shape, trace: Sequence[Event]) -> AssertionError | None:
    """The events once more, those that cannot happen left out, and then rest; the promise that is broken."""
    with World(shape) as world:
        try:
            for event in trace:
                repeat(world, event)
            settle(world, random.Random(0).randrange)
        except AssertionError as error:
            return error
    return None


def shrunk(failure: Failure) -> Failure:
    """A shorter trace that breaks a promise, by leaving out ever smaller pieces."""
    trace, error = list(failure.trace), failure.error
    size = max(len(trace) // 2, 1)
    while size:
        start, before = 0, len(trace)
        while start < len(trace):
            shorter = trace[:start] + trace[start + size :]
            found = replay(failure.shape, shorter)
            if found is not None:
                trace, error = shorter, found
            else:
                start += size
        # The smallest pieces until none of them can go.
        size = size // 2 if size > 1 else int(len(trace) < before)
    return Failure(failure.seed, failure.shape, trace, error)
