"""Whose turn it is: a pull copies one slice beside a step and waits for the next one, so that no step pays for all.

Between the loop of the steps and the pulling thread. Knows neither; only that steps begin, and that nobody waits where
there are none.
"""

import threading

MAX_WAIT_S = 0.2  # a step that takes longer than this is not disturbed by a slice more


class StepTurns:
    """One per worker."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._num_steps = 0
        self._is_stepping = False

    def begin_step(self) -> None:
        """A step is computed from now on."""
        with self._changed:
            self._num_steps += 1
            self._is_stepping = True
            self._changed.notify_all()

    def rest(self) -> None:
        """There is no batch: whoever waits goes on."""
        with self._changed:
            self._is_stepping = False
            self._changed.notify_all()

    def wait(self) -> None:
        """On the pulling thread, between two slices: until the next step begins."""
        with self._changed:
            seen = self._num_steps
            self._changed.wait_for(lambda: not self._is_stepping or self._num_steps != seen, MAX_WAIT_S)
