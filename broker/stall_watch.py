"""When a loop counts as stalled: it has not come round for longer than its longest rounds explain. Pure: no clock."""

PATIENCE = 4.0  # a round may last this many times as long as the longest one so far


class StallWatch:
    """Told regularly how often the loop has come round."""

    def __init__(self, limit_s: float) -> None:
        """`limit_s`: how long a round may last in any case."""
        self._limit_s = limit_s
        self._num_rounds: int | None = None
        self._longest_s = 0.0
        self.waited_s = 0.0  # since the loop came round, as far as it was seen go by

    def is_stalled(self, num_rounds: int | None, seen_s: float) -> bool:
        """`num_rounds`: rounds so far, None while there is no loop (loading, draining). `seen_s`: time that went by
        since the last look, without what the looker itself slept through (SIGSTOP) or cannot judge (Redis away).
        """
        if num_rounds is None or num_rounds != self._num_rounds:
            if num_rounds is not None and self._num_rounds is not None:
                self._longest_s = max(self._longest_s, self.waited_s)
            self._num_rounds = num_rounds
            self.waited_s = 0.0
            return False
        self.waited_s += seen_s
        return self.waited_s > max(self._limit_s, PATIENCE * self._longest_s)
