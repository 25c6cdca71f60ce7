"""Which requests this process reads. Knows their ids and nothing else."""

from collections import Counter


class Readings:
    """One per API process; a request may be read by several of its connections."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def begin(self, request_id: str) -> None:
        """One more reads it."""
        self._counts[request_id] += 1

    def end(self, request_id: str) -> None:
        """One less reads it."""
        self._counts[request_id] -= 1
        if self._counts[request_id] <= 0:
            del self._counts[request_id]

    @property
    def request_ids(self) -> list[str]:
        """What is read at the moment."""
        return list(self._counts)
