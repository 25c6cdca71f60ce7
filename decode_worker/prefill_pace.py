"""How long a prefill step of so many tokens takes here: a fixed part, for reading the weights, and a part per token.

A line through what was measured, late measurements weighing more. Pure; knows no clock.
"""

KEEP = 0.9  # what an earlier measurement weighs after each later one


class PrefillPace:
    """Starts from measurements of the start; without any it knows nothing."""

    def __init__(self) -> None:
        self._weight = self._tokens = self._seconds = self._tokens2 = self._products = 0.0

    def note(self, num_tokens: int, seconds: float) -> None:
        """A step of so many tokens took so long."""
        self._weight = self._weight * KEEP + 1
        self._tokens = self._tokens * KEEP + num_tokens
        self._seconds = self._seconds * KEEP + seconds
        self._tokens2 = self._tokens2 * KEEP + num_tokens * num_tokens
        self._products = self._products * KEEP + num_tokens * seconds

    @property
    def is_known(self) -> bool:
        """Whether anything was measured."""
        return self._tokens > 0 and self._seconds > 0

    @property
    def line(self) -> tuple[float, float]:
        """(fixed seconds, seconds per token), the second above 0."""
        spread = self._weight * self._tokens2 - self._tokens * self._tokens
        mean = self._seconds / self._tokens
        if spread <= 1e-9 * self._tokens2 * self._weight:  # one length only: nothing tells the parts from each other
            return 0.0, mean
        slope = (self._weight * self._products - self._tokens * self._seconds) / spread
        slope = min(max(slope, 0.1 * mean), mean)  # noise may tilt the line; neither part is below 0
        return max(0.0, (self._seconds - slope * self._tokens) / self._weight), slope

    def seconds(self, num_tokens: int) -> float:
        """How long a step of so many takes."""
        fixed_s, token_s = self.line
        return fixed_s + num_tokens * token_s

    def tokens_within(self, seconds: float) -> int:
        """The largest step that takes at most so long; 0 when none does."""
        fixed_s, token_s = self.line
        return max(0, int((seconds - fixed_s) / token_s + 1e-9))
