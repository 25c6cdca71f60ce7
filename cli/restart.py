"""When a child that ended is started again. Pure: no clock, no process."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """Exponential back-off, forgotten once a child has lived for a while."""

    first_delay_s: float = 0.5
    longest_delay_s: float = 15.0
    forgive_after_s: float = 30.0

    def failures(self, failures_before: int, alive_s: float) -> int:
        """How many ends in a row this one is, counting it."""
        return 1 if alive_s >= self.forgive_after_s else failures_before + 1

    def delay_s(self, failures: int) -> float:
        """How long to wait after the `failures`-th end in a row."""
        doublings = min(failures - 1, 30)  # the float must not overflow
        return min(self.first_delay_s * float(2**doublings), self.longest_delay_s)
