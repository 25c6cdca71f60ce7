"""What one reader has of one choice's events: in order and each once, whatever comes twice, late or never.

Knows the event loop and no Redis; `relay.py` feeds it from wherever an event comes.
"""

import asyncio
import math
import time
from collections.abc import Callable

from messages.token_event import TokenEvent

# What events may go by instead of waking who waits for them: it gets them all, and says for how many seconds from now
# on patience lasts, or None where it took none of them.
Shortcut = Callable[[list[TokenEvent]], float | None]

_TIMER_S = 0.001  # how exact the loop's timers are


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
        self.came_s = self.heard_s  # when it last got an event
        self._ready: list[TokenEvent] = []  # those before next_index that nobody has taken
        self._early: dict[int, TokenEvent] = {}
        self._waiter: asyncio.Future[None] | None = None
        self._shortcut: Shortcut | None = None  # of the waiter
        self._give_up_at = 0.0  # by time.monotonic(); of the waiter
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf  # when it goes off, by time.monotonic()

    def deliver(self, index: int, event: TokenEvent, now_s: float) -> None:
        """Take an event from whichever source; pass on what is next in order."""
        self.accept(index, event, now_s)
        self.wake()

    def accept(self, index: int, event: TokenEvent, now_s: float) -> None:
        """The first half of `deliver`. Who has more for it accepts all of them, so that they go on together."""
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
        self.heard_s = self.came_s = now_s
        self.is_behind = bool(self._early) and not self.is_ended

    def wake(self) -> None:
        """The second half: whoever waits gets what was accepted, by its shortcut or by waking."""
        waiter = self._waiter
        if not self._ready or waiter is None or waiter.done():
            return
        if self._shortcut is not None:
            try:
                patience_s = self._shortcut(self._ready)
            except Exception as error:  # noqa: BLE001 - the waiter's own, and no matter of who delivers to others too
                waiter.set_exception(error)
                return
            if patience_s is not None:
                self._ready = []
                self._be_patient(self.came_s + patience_s)
                return
        waiter.set_result(None)

    def end(self, event: TokenEvent) -> None:
        """Deliver a terminal event at the next index, whatever else was to come."""
        self._early.clear()
        self.deliver(self.next_index, event, time.monotonic())

    async def take(self, patience_s: float | None = None, shortcut: Shortcut | None = None) -> list[TokenEvent]:
        """Everything that has come since the last call, at least one event. What `shortcut` takes while this waits does
        not end the waiting. Raises TimeoutError when nothing comes for `patience_s` (None: waits for ever), and what
        `shortcut` raises."""
        if not self._ready:
            self._waiter, self._shortcut = asyncio.get_running_loop().create_future(), shortcut
            self._be_patient(math.inf if patience_s is None else time.monotonic() + patience_s)
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
        self._timer_at = math.inf

    def _pass_on(self, event: TokenEvent) -> None:
        self._ready.append(event)
        self.next_index += 1
        self.is_ended = event.finish_reason is not None

    def _be_patient(self, until_s: float) -> None:
        # Not a timer per event: one that goes off too early is set anew.
        self._give_up_at = until_s
        if until_s < self._timer_at:
            self._set_timer()

    def _set_timer(self) -> None:
        self.close()
        if self._give_up_at < math.inf:
            self._timer_at = self._give_up_at
            delay_s = self._timer_at - time.monotonic()
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._on_timer)

    def _on_timer(self) -> None:
        self.close()
        if self._waiter is None or self._waiter.done():
            return  # whoever waits next sets it anew
        if time.monotonic() + _TIMER_S < self._give_up_at:
            self._set_timer()
        else:
            self._waiter.set_exception(TimeoutError())
