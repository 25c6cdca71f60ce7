"""What the workers of a simulated cluster share: time, costs, the two queues, and what becomes of each request.

Knows workers only as those who take from a queue; what they do is prefill_model.py's and decode_model.py's.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from errors import ConfigError
from planning.clock import Clock
from planning.costs import StepCosts, Surface
from planning.load import Load, Request
from settings.loading import Settings


class Prefiller(Protocol):
    """A prefill worker."""

    def go(self) -> None:
        """Something came: take it, if there is room."""

    def released(self, offer: "Offer") -> None:
        """A decode worker has pulled `offer`."""


class Taker(Protocol):
    """A decode worker."""

    @property
    def can_take(self) -> bool:
        """Whether it would take a job now."""

    def take(self, offer: "Offer") -> None:
        """It is yours."""


@dataclass(slots=True, eq=False)
class Offer:
    """KV that waits for a decode worker to pull it, in blocks of `owner`."""

    request: Request
    owner: Prefiller
    num_tokens: int
    num_blocks: int


class Exchange:
    """One per simulation."""

    def __init__(self, costs: StepCosts, settings: Settings, load: Load, on_end: Callable[[Request], None]) -> None:
        self.costs, self.settings = costs, settings
        self.clock = Clock()
        self.prefill_cost, self.decode_cost = Surface(costs.prefill), Surface(costs.decode)
        self.prefill_queue: deque[Request] = deque()
        self._decode_queue: deque[Offer] = deque()
        # Who has waited the longest at a queue comes first.
        self.prefillers: deque[Prefiller] = deque()
        self.takers: deque[Taker] = deque()
        self.requests: list[Request] = []
        self.num_present = 0  # requests that have arrived and not ended
        self.request_seconds = 0.0  # its integral over time
        self.num_preempted = 0
        self._load, self._on_end = load, on_end
        self._seen_s = 0.0

    def blocks_of(self, num_tokens: int) -> int:
        """KV blocks that hold so many tokens."""
        return -(-num_tokens // self.costs.block_size)

    # -- what workers tell -----------------------------------------------------------------------------------------

    def token(self, request: Request) -> None:
        """A token of `request` was made."""
        now_s = self.clock.now_s
        request.num_output += 1
        if request.num_output == 1:
            request.first_token_s = now_s
        if request.is_done:
            request.last_token_s = now_s
            self.num_present -= 1
            self._on_end(request)
            if (more := self._load.after(request)) is not None:
                self._arrive(more)

    def offer(self, offer: Offer) -> None:
        """Prefilled: the next decode worker that has room takes it."""
        self._decode_queue.append(offer)
        for worker in list(self.takers):
            self.serve_takers(worker)

    def serve_takers(self, worker: Taker) -> None:
        """`worker` takes what waits, if it has room."""
        if self._decode_queue and worker.can_take:
            self.takers.remove(worker)
            self.takers.append(worker)
            worker.take(self._decode_queue.popleft())

    def preempted(self, request: Request) -> None:
        """Its blocks are gone: prompt and output are prefilled again."""
        self.num_preempted += 1
        self._enqueue(request)

    # -- clients ---------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """From now on requests come."""
        self._arrivals = self._load.start()
        self._plan_arrival()

    def _plan_arrival(self) -> None:
        request = next(self._arrivals, None)
        if request is not None:
            self.clock.after(request.arrival_s - self.clock.now_s, lambda: self._arrive_next(request))

    def _arrive_next(self, request: Request) -> None:
        self._plan_arrival()
        self._arrive(request)

    def _arrive(self, request: Request) -> None:
        most = min(self.costs.prefill_blocks, self.costs.decode_blocks) * self.costs.block_size
        if request.prompt_tokens + request.output_tokens > most:
            raise ConfigError(
                f"a request of {request.prompt_tokens} + {request.output_tokens} tokens; by the cost file a worker's "
                f"KV blocks hold at most {most}"
            )
        self.requests.append(request)
        self.num_present += 1
        self.clock.after(self.costs.way.front_s, lambda: self._enqueue(request))

    def _enqueue(self, request: Request) -> None:
        self.prefill_queue.append(request)
        for _ in range(len(self.prefillers)):
            if not self.prefill_queue:
                return
            worker = self.prefillers[0]
            self.prefillers.rotate(-1)
            worker.go()

    def watch(self) -> None:
        """Time has gone on."""
        now_s = self.clock.now_s
        self.request_seconds += self.num_present * (now_s - self._seen_s)
        self._seen_s = now_s
