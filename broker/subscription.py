"""What one reader has of one choice's events: in order and each once, whatever comes twice, late or never.

Knows the event loop and no Redis; `relay.py` feeds it from wherever an event comes.
"""

import asyncio
import math
import time

from messages.token_event import TokenEvent


class Subscription:
    """One choice's events in order and each once; the last has a `finish_reason`. For one reader.

    Bounded by the request's max_new_tokens, hence unbounded here.
    """

    def __init__(self, request_id: str, choice: int, after: int) -> None:
        self.request_id = request_id
        self.choice = choice
        self.next_index = after + 1
        self.is_ended = False
        self.is_behind = False  # a later event came before `next_index`
        self.is_seen = False  # Redis has, or had, a record of it
        self.num_unknown = 0  # checks in a row that found no record
        self.heard_s = time.monotonic()  # when it last got an event or was checked
        self._ready: list[TokenEvent] = []  # those before next_index that nobody has taken
        self._early: dict[int, TokenEvent] = {}
        self._waiter: asyncio.Future[None] | None = None
        self._give_up_at = 0.0  # by the loop's clock; of the waiter
        self._timer: asyncio.TimerHandle | None = None

    def deliver(self, index: int, event: TokenEvent, now_s: float) -> None:
        """Take an event from whichever source; pass on what is next in order."""
        if self.is_ended or index < self.next_index:
            return
        self.is_seen = True
        if index > self.next_index:
            self._early[index] = event
            self.is_behind = True
            return
        self._pass_on(event)
        while self._early and not self.is_ended and (early := self._early.pop(self.next_index, None)) is not None:
            self._pass_on(early)
        self.heard_s = now_s
        self.is_behind = bool(self._early) and not self.is_ended
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def end(self, event: TokenEvent) -> None:
        """Deliver a terminal event at the next index, whatever else was to come."""
        self._early.clear()
        self.deliver(self.next_index, event, time.monotonic())

    async def take(self, patience_s: float | None = None) -> list[TokenEvent]:
        """Everything that has come since the last call, at least one event. Raises TimeoutError when nothing comes for
        `patience_s` (None: waits for ever)."""
        if not self._ready:
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            self._give_up_at = math.inf if patience_s is None else loop.time() + patience_s
            # Not a timer per event: one that goes off too early is set anew.
            if self._timer is None or self._timer.when() > self._give_up_at:
                self._set_timer(loop)
            await self._waiter
        ready, self._ready = self._ready, []
        return ready

    @property
    def num_ready(self) -> int:
        """Events that `take` would return at once."""
        return len(self._ready)

    def close(self) -> None:
        """Nobody takes anything any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _pass_on(self, event: TokenEvent) -> None:
        self._ready.append(event)
        self.next_index += 1
        self.is_ended = event.finish_reason is not None

    def _set_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._give_up_at < math.inf:
            self._timer = loop.call_at(self._give_up_at, self._on_timer, loop)

    def _on_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        if self._waiter is None or self._waiter.done():
            return  # whoever waits next sets it anew
        if loop.time() < self._give_up_at:
            self._set_timer(loop)
        else:
            self._waiter.set_exception(TimeoutError())
