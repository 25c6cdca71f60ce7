"""A simulated decode worker: what decode_worker/worker.py and admission.py do, with steps that take what they cost.

Decides by the very functions of decode_worker/scheduler.py, and rests as courtesy.py says. Not modelled: prompts that
it prefills itself (where prefill workers share its cores it prefills none), classes of priority, failures.
"""

from dataclasses import dataclass

from decode_worker.courtesy import LOOK_S, rest_s
from decode_worker.scheduler import Demand, can_admit, plan_step
from planning.clock import Event
from planning.exchange import Exchange, Offer
from planning.host import Host
from planning.load import Request


@dataclass(slots=True, eq=False)
class Stream:
    """A request in the batch."""

    request: Request
    num_blocks: int


class DecodeModel:
    """One worker."""

    def __init__(self, exchange: Exchange, host: Host) -> None:
        self._exchange, self._host = exchange, host
        self.seat = host.seat(self._on_change)
        self._running: list[Stream] = []  # oldest first
        self._joining: list[Stream] = []
        self._held: Offer | None = None  # taken; waits for blocks
        self._num_pulling = 0  # at most one, held or being pulled
        self._free_blocks = exchange.costs.decode_blocks
        self._is_busy = False  # in a step, or between two
        self._rest: Event | None = None
        self._rest_began_s = self._last_step_s = 0.0
        self._step_began_s = 0.0

    # -- taking in -----------------------------------------------------------------------------------------------

    @property
    def can_take(self) -> bool:
        """Whether it would take a job now."""
        num_claimed = self._num_here + self._num_pulling
        return (
            not self._num_pulling
            and num_claimed < self._exchange.settings.decode.max_running
            and can_admit(1, self._free_blocks, num_claimed)
        )

    def take(self, offer: Offer) -> None:
        """A job of the decode queue; one at a time."""
        self._num_pulling = 1
        self._held = offer
        self._admit()

    @property
    def _num_here(self) -> int:
        return len(self._running) + len(self._joining)

    def _admit(self) -> None:
        """Pull what is held as soon as there are blocks for it."""
        offer = self._held
        if offer is None or not can_admit(offer.num_blocks, self._free_blocks, self._num_here):
            return
        self._held = None
        self._free_blocks -= offer.num_blocks
        way = self._exchange.costs.way
        seconds = way.handoff_s + way.handoff_token_s * offer.num_tokens
        self._exchange.clock.after(seconds, lambda: self._join(offer))

    def _join(self, offer: Offer) -> None:
        self._num_pulling = 0
        self._joining.append(Stream(offer.request, offer.num_blocks))
        offer.owner.released(offer)
        self._exchange.serve_takers(self)
        if not self._is_busy:
            self._next()

    def _room_came(self) -> None:
        self._admit()
        self._exchange.serve_takers(self)

    # -- one step ------------------------------------------------------------------------------------------------

    def _next(self) -> None:
        """A step, after a rest where others want the cores."""
        self._is_busy = bool(self._num_here)
        if not self._is_busy:
            return
        if self._running and self._host.others_compute(self.seat) and self._exchange.settings.decode.rest_share > 0:
            self._rest_began_s = self._exchange.clock.now_s
            self._last_step_s = self._rest_began_s - self._step_began_s
            if (seconds := self._rest_s()) > 0:
                self._host.leave(self.seat)
                self._rest = self._exchange.clock.after(seconds, self._step)
                return
        self._step()

    def _rest_s(self) -> float:
        num_prompts = self._host.prompts_of_others(self.seat)
        return rest_s(self._last_step_s, len(self._running), num_prompts, self._exchange.settings.decode)

    def _on_change(self) -> None:
        """While it rests: others want the cores for more or fewer prompts, or no longer."""
        if self._rest is None:
            return
        now_s = self._exchange.clock.now_s
        left_s = max(0.0, self._rest_began_s + self._rest_s() - now_s)
        if not self._host.others_compute(self.seat):
            left_s = min(left_s, self._rest.time_s - now_s, LOOK_S / 2)  # it looks now and then
        self._rest.cancel()
        self._rest = self._exchange.clock.after(left_s, self._step)

    def _step(self) -> None:
        self._rest = None
        self._step_began_s = self._exchange.clock.now_s
        self._running += self._joining
        self._joining = []
        self._make_room()
        if not self._running:
            self._is_busy = False
            return
        for stream in self._running:
            needed = self._exchange.blocks_of(stream.request.num_tokens)
            self._free_blocks -= needed - stream.num_blocks
            stream.num_blocks = needed
        num = len(self._running)
        context = sum(stream.request.num_tokens for stream in self._running) / num - 1
        self._host.compute(self.seat, self._exchange.decode_cost.at(num, context), self._end_step)

    def _make_room(self) -> None:
        """Who cannot get a block gives its own back and is prefilled again, prompt and output."""
        demands = [
            Demand(stream.num_blocks, self._exchange.blocks_of(stream.request.num_tokens)) for stream in self._running
        ]
        plan = plan_step(demands, self._free_blocks)
        for position in plan.preempt:
            stream = self._running[position]
            self._free_blocks += stream.num_blocks
            self._exchange.preempted(stream.request)
        if plan.preempt:
            self._running = [self._running[position] for position in plan.decode]

    def _end_step(self) -> None:
        num = len(self._running)
        for stream in self._running:
            self._exchange.token(stream.request)
            if stream.request.is_done:
                self._free_blocks += stream.num_blocks
        self._running = [stream for stream in self._running if not stream.request.is_done]
        if len(self._running) < num:
            self._room_came()
        way = self._exchange.costs.way
        self._exchange.clock.after(way.decode_gap_s + num * way.token_s, self._next)
