"""Simulated time: what happens when, in order. Knows no worker."""

import heapq
from collections.abc import Callable
from itertools import count


class Event:
    """Something that will happen unless it is cancelled."""

    __slots__ = ("act", "time_s")

    def __init__(self, time_s: float, act: Callable[[], None] | None) -> None:
        self.time_s, self.act = time_s, act

    def cancel(self) -> None:
        """It will not happen. Harmless when repeated, and afterwards."""
        self.act = None


class Clock:
    """One per simulation. Of events at the same time the one that was planned first comes first."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._events: list[tuple[float, int, Event]] = []
        self._numbers = count()

    def after(self, seconds: float, act: Callable[[], None]) -> Event:
        """Plan `act` in so many seconds."""
        event = Event(self.now_s + max(0.0, seconds), act)
        heapq.heappush(self._events, (event.time_s, next(self._numbers), event))
        return event

    def run(self, watch: Callable[[], None] = lambda: None) -> None:
        """Until nothing is planned any more. `watch` is called before each event, at its time."""
        while self._events:
            time_s, _, event = heapq.heappop(self._events)
            if event.act is None:
                continue
            self.now_s = time_s
            watch()
            act, event.act = event.act, None
            act()
