"""A thread that runs only while the simulation waits for it, so that its steps can be told apart and put in any order.

What blocks in production (a beat that waits for Redis, a pull that copies block by block) calls `pause` here. Knows
nothing of what runs on it.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class Killed(BaseException):
    """The process is gone; unwinds the fiber."""


@dataclass(slots=True)
class Sleep:
    """A fiber pauses for it until `until_s` of the simulation's clock; waking it earlier is to lower that."""

    until_s: float


class Fiber:
    """One piece of work. `start` and `resume` run it until it pauses or ends."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self._carrier: _Carrier | None = None
        self._into: Any = None
        self._error: BaseException | None = None
        self.paused_for: Any = None
        self.is_done = False
        self.result: Any = None
        self.error: BaseException | None = None

    def resume(self, value: Any = None, error: BaseException | None = None) -> None:
        """Go on with `value` (or `error`) as the answer to the last pause."""
        self._into, self._error = value, error
        if self._carrier is None:
            self._carrier = _idle.pop() if _idle else _Carrier()
            self._carrier.fiber = self
        carrier = self._carrier
        carrier.go.release()
        carrier.back.acquire()
        if self.is_done:
            carrier.fiber = None
            _idle.append(carrier)

    def kill(self) -> None:
        """The end of the process that it is a thread of."""
        while self._carrier is not None and not self.is_done:
            self.resume(error=Killed())

    def run_through(self) -> None:
        """All of it at once, on the calling thread."""
        try:
            if self._error is not None:
                raise self._error
            self.result = self._work()
        except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to whoever waits for the fiber
            self.error = error
        self.is_done = True


class _Carrier:
    """The thread under a fiber; used again, since starting one takes longer than most steps."""

    def __init__(self) -> None:
        self.go, self.back = threading.Semaphore(0), threading.Semaphore(0)
        self.fiber: Fiber | None = None
        threading.Thread(target=self._serve, name="fiber", daemon=True).start()

    def _serve(self) -> None:
        _here.carrier = self
        while True:
            self.go.acquire()
            assert self.fiber is not None
            self.fiber.run_through()
            self.back.release()


_idle: list[_Carrier] = []
_here = threading.local()


def pause(reason: Any = None) -> Any:
    """Let others go on first. Returns what `resume` is given; does nothing outside a fiber."""
    carrier: _Carrier | None = getattr(_here, "carrier", None)
    if carrier is None or carrier.fiber is None:
        return None
    fiber = carrier.fiber
    fiber.paused_for = reason
    carrier.back.release()
    carrier.go.acquire()
    if fiber._error is not None:
        error, fiber._error = fiber._error, None
        raise error
    return fiber._into
