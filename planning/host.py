"""The cores of a simulated host, shared by the ledger's rule (`kernels/cpu/cores.cpp`): each who computes has its part.

Who computes now or ended less than FRESH_S ago counts. A step goes on with another speed from the moment at which
their number changes, and is stretched until they have settled. Knows steps as costs; knows no queue.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from planning.clock import Clock, Event
from planning.costs import Cost

FRESH_S = 0.003  # FRESH_NS of kernels/cpu/cores.cpp
# For so long after their number has changed do those who compute disturb each other: whoever had all cores is in the
# middle of a section on them. Sixteen streams whose steps follow each other slow a prompt down no more than the threads
# that they take, six streams that rest after each step by 1.45 to 1.7 times: that told 0.02 from 0.005 and 0.01.
SETTLE_S = 0.02


@dataclass(slots=True, eq=False)
class Seat:
    """One worker's place on a host."""

    on_change: Callable[[], None]
    is_computing: bool = False
    stale: Event | None = None  # planned while its last step is fresh
    busy_s: float = 0.0  # in steps
    num_prompts: int = 0  # that the next steps finish
    _cost: Cost | None = None
    _left: float = 0.0  # of the step, 1 to 0
    _since_s: float = 0.0
    _step_s: float = 0.0  # that a whole step would take as things are in this part of it
    _end: Event | None = None
    _done: Callable[[], None] = field(default=lambda: None)


class Host:
    """`cores` 0: every seat has a device of its own and knows no others."""

    def __init__(self, clock: Clock, cores: int, shared_stretch: float = 1.0) -> None:
        """`shared_stretch`: of Way."""
        self._clock, self._cores, self._shared_stretch = clock, cores, shared_stretch
        self._seats: list[Seat] = []  # those that count as computing
        self._all: list[Seat] = []
        self._settling: Event | None = None  # planned while they disturb each other

    def seat(self, on_change: Callable[[], None]) -> Seat:
        """A worker's place; `on_change`: others compute, or no longer."""
        seat = Seat(on_change)
        self._all.append(seat)
        return seat

    def compute(self, seat: Seat, cost: Cost, done: Callable[[], None]) -> None:
        """Begin a step of `seat`, which has none; `done` is called at its end."""
        assert not seat.is_computing
        seat.is_computing, seat._cost, seat._done, seat._left = True, cost, done, 1.0
        if seat.stale is not None:
            seat.stale.cancel()
            seat.stale = None
        seat._since_s = self._clock.now_s
        self._plan(seat)
        if seat not in self._seats:
            self._seats.append(seat)
            self._share()

    def show_prompts(self, seat: Seat, num_prompts: int) -> None:
        """So many prompts the next steps of `seat` finish."""
        if seat.num_prompts != num_prompts:
            seat.num_prompts = num_prompts
            self._tell()

    def others_compute(self, seat: Seat) -> bool:
        """Whether somebody else computes on the cores of `seat`, or did just now."""
        return bool(self._cores) and any(other is not seat for other in self._seats)

    def prompts_of_others(self, seat: Seat) -> int:
        """How many prompts the others who compute are about to finish."""
        return sum(other.num_prompts for other in self._seats if other is not seat)

    def leave(self, seat: Seat) -> None:
        """Its cores are the others' at once."""
        if seat.stale is not None:
            seat.stale.cancel()
            self._drop(seat)

    def _plan(self, seat: Seat) -> None:
        """The end of its step, if nothing changes."""
        assert seat._cost is not None
        if self._cores:
            num_seats = max(1, len(self._seats))
            is_stretched = num_seats > 1 and self._settling is not None
            seat._step_s = seat._cost.seconds(self._cores / num_seats) * (self._shared_stretch if is_stretched else 1.0)
        else:
            seat._step_s = seat._cost.seconds(0.0)
        seat._end = self._clock.after(seat._left * seat._step_s, lambda: self._end(seat))

    def _share(self) -> None:
        """Somebody began or stopped to compute: everybody goes on with another number of threads."""
        if not self._cores:
            return
        if self._settling is not None:
            self._settling.cancel()
        self._settling = self._clock.after(SETTLE_S, self._settle)
        self._plan_anew()
        self._tell()

    def _tell(self) -> None:
        for seat in self._all:
            seat.on_change()

    def _settle(self) -> None:
        self._settling = None
        self._plan_anew()

    def _plan_anew(self) -> None:
        """The rest of every step that is being computed."""
        for seat in self._seats:
            if seat.is_computing:
                assert seat._end is not None
                gone_s = self._clock.now_s - seat._since_s
                seat.busy_s += gone_s
                seat._left = max(0.0, seat._left - gone_s / seat._step_s)
                seat._since_s = self._clock.now_s
                seat._end.cancel()
                self._plan(seat)

    def _end(self, seat: Seat) -> None:
        seat.busy_s += self._clock.now_s - seat._since_s
        seat.is_computing, seat._cost, seat._end = False, None, None
        seat.stale = self._clock.after(FRESH_S, lambda: self._drop(seat))
        seat._done()

    def _drop(self, seat: Seat) -> None:
        seat.stale = None
        self._seats.remove(seat)
        self._share()
