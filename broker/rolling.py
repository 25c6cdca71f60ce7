"""A mean of late: what lies further back counts less. Pure; knows no clock."""

import math


class Rolling:
    """`amount` per `weight`, e.g. tokens per second or seconds per sequence. What lies `window` of weight back counts
    for a third."""

    def __init__(self, window: float) -> None:
        self._window = window
        self._amount = self._weight = 0.0

    def note(self, amount: float, weight: float) -> None:
        """So much came with so much."""
        keep = math.exp(-weight / self._window)
        self._amount = self._amount * keep + amount
        self._weight = self._weight * keep + weight

    @property
    def value(self) -> float:
        """The mean; 0 before anything with a weight came."""
        return self._amount / self._weight if self._weight > 0 else 0.0
