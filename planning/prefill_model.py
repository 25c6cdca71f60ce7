"""A simulated prefill worker: what prefill_worker/worker.py does, with steps that take what they cost.

Decides by the very functions of prefill_worker/scheduler.py. Not modelled: prefix hits, classes of priority, failures.
"""

from collections import deque
from dataclasses import dataclass

from messages.request import Priority
from planning.exchange import Exchange, Offer
from planning.host import Host
from planning.load import Request
from prefill_worker.scheduler import TAKE_COUNT, open_classes, plan_step


@dataclass(slots=True, eq=False)
class Prompt:
    """A request in prefill: its prompt and, after a preemption, its output."""

    request: Request
    remaining_tokens: int
    num_blocks: int
    computed_tokens: int = 0


class PrefillModel:
    """One worker."""

    def __init__(self, exchange: Exchange, host: Host) -> None:
        self._exchange, self._host = exchange, host
        self.seat = host.seat(lambda: None)
        self._waiting: deque[Prompt] = deque()  # taken, no blocks yet
        self._running: list[Prompt] = []  # oldest first
        self._num_offers = 0
        self._free_blocks = exchange.costs.prefill_blocks
        self._is_busy = False  # in a step, or between two

    def go(self) -> None:
        """Something came, or came free: take what may be taken and begin a step, if none is under way."""
        if self._is_busy:
            return
        self._admit()
        budget = self._exchange.costs.token_budget
        claimed = (*self._running, *self._waiting)
        self._host.show_prompts(self.seat, sum(one.remaining_tokens <= budget for one in claimed))
        plan = plan_step([one.remaining_tokens for one in self._running], budget)
        if not plan:
            return
        self._is_busy = True
        chunks = [(self._running[chunk.position], chunk.num_tokens) for chunk in plan]
        num_tokens = sum(num for _, num in chunks)
        context = sum(num * one.computed_tokens for one, num in chunks) / num_tokens
        cost = self._exchange.prefill_cost.at(num_tokens, context)
        self._host.compute(self.seat, cost, lambda: self._end_step(chunks))

    def released(self, offer: Offer) -> None:
        """A decode worker has pulled it."""
        self._num_offers -= 1
        self._free_blocks += offer.num_blocks
        self.go()

    def _admit(self) -> None:
        settings = self._exchange.settings
        at_hand = [(Priority.NORMAL, one.remaining_tokens) for one in (*self._running, *self._waiting)]
        waiting = {Priority.NORMAL} if self._waiting else set()
        num_ahead = self._num_offers + len(at_hand)
        may_offer = self._num_offers < settings.prefill.max_ahead
        if may_offer and num_ahead + TAKE_COUNT <= settings.kv_transfer.max_offers:
            if Priority.NORMAL in open_classes(at_hand, waiting, self._exchange.costs.token_budget):
                for _ in range(min(TAKE_COUNT, len(self._exchange.prefill_queue))):
                    request = self._exchange.prefill_queue.popleft()
                    num_blocks = self._exchange.blocks_of(request.num_tokens)
                    self._waiting.append(Prompt(request, request.num_tokens, num_blocks))
        while self._waiting and len(self._running) < settings.prefill.max_running:
            if self._waiting[0].num_blocks > self._free_blocks:
                return
            self._free_blocks -= self._waiting[0].num_blocks
            self._running.append(self._waiting.popleft())

    def _end_step(self, chunks: list[tuple[Prompt, int]]) -> None:
        for one, num_tokens in chunks:
            one.remaining_tokens -= num_tokens
            one.computed_tokens += num_tokens
        done = [one for one, _ in chunks if one.remaining_tokens == 0]
        self._running = [one for one in self._running if one.remaining_tokens > 0]
        if not self._running and not self._waiting:
            self._host.leave(self.seat)
        for one in done:
            self._exchange.token(one.request)
            if one.request.is_done:
                self._free_blocks += one.num_blocks
            else:
                self._num_offers += 1
                self._exchange.offer(Offer(one.request, self, one.computed_tokens, one.num_blocks))
        self._exchange.clock.after(self._exchange.costs.way.prefill_gap_s, self._next)

    def _next(self) -> None:
        self._is_busy = False
        self.go()
