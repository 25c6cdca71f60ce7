"""What waits in the cluster, and how much of it a new request may find ahead of itself.

`refusal` is the rule that broker/lua/create.lua applies in one step with the creation; here it serves the look that
an API process takes beforehand. Pure; knows neither Redis nor the workers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from errors import QueueFull
from messages.request import Priority

UNBOUNDED = 1e18  # a float that Lua reads too

BUSY = "Server is busy, please try again later (Status code: 503)"


class Reason(StrEnum):
    """Why a request is refused."""

    JOBS = "jobs"  # the prefill queue is full
    TOKENS = "tokens"  # its first token would come too late
    SEQUENCES = "sequences"  # it would wait too long for a place in a decode batch


@dataclass(frozen=True, slots=True)
class Backlog:
    """What is there, per class with the most urgent first. A job counts until it is acknowledged."""

    prefill_jobs: tuple[int, int, int] = (0, 0, 0)
    prefill_tokens: tuple[int, int, int] = (0, 0, 0)  # prompt tokens of those jobs
    decode_waiting: tuple[int, int, int] = (0, 0, 0)  # prefilled, and no decode worker has them
    decoding: int = 0  # taken by a decode worker

    def tokens_ahead(self, priority: Priority) -> int:
        """Prompt tokens that are computed before those of a new request of this class."""
        return sum(self.prefill_tokens[: priority.rank + 1])

    def sequences_ahead(self, priority: Priority) -> int:
        """Sequences that have, or get, a place in a decode batch before it."""
        upto = priority.rank + 1
        return sum(self.prefill_jobs[:upto]) + sum(self.decode_waiting[:upto]) + self.decoding

    def plus(self, priority: Priority, jobs: int, tokens: int) -> "Backlog":
        """With `jobs` more in the prefill queue, of `tokens` together."""
        return replace(
            self,
            prefill_jobs=_plus(self.prefill_jobs, priority.rank, jobs),
            prefill_tokens=_plus(self.prefill_tokens, priority.rank, tokens),
        )


@dataclass(frozen=True, slots=True)
class Room:
    """What a new request may find ahead of itself."""

    jobs: float = UNBOUNDED  # in the prefill queue, of all classes, itself included
    tokens_ahead: float = UNBOUNDED
    sequences_ahead: float = UNBOUNDED  # itself included
    sequences_per_token: float = 0.0  # so many more for each token ahead: they leave while that is computed


class Refused(QueueFull):
    """A request was refused in the face of `backlog`."""

    def __init__(self, reason: Reason, backlog: Backlog, why: str = "") -> None:
        """`why`: what is known of the cause, and what would help."""
        super().__init__(f"{BUSY}: {why}" if why else BUSY)
        self.reason, self.backlog = reason, backlog


def refusal(backlog: Backlog, priority: Priority, num_choices: int, room: Room) -> Reason | None:
    """Why a request of `num_choices` sequences has no room; None when it has."""
    if sum(backlog.prefill_jobs) + num_choices > room.jobs:
        return Reason.JOBS
    tokens_ahead = backlog.tokens_ahead(priority)
    if tokens_ahead > room.tokens_ahead:
        return Reason.TOKENS
    allowed = room.sequences_ahead + tokens_ahead * room.sequences_per_token
    if backlog.sequences_ahead(priority) + num_choices > allowed:
        return Reason.SEQUENCES
    return None


def read_backlog(figures: Sequence[int]) -> Backlog:
    """As create.lua gives it: jobs, tokens and decode jobs that wait of every class, then those that decode."""
    rows = [figures[at : at + 3] for at in range(0, 9, 3)]
    jobs, tokens, waiting = zip(*rows, strict=True)
    return Backlog(jobs, tokens, waiting, figures[9])


def _plus(values: tuple[int, int, int], place: int, amount: int) -> tuple[int, int, int]:
    high, normal, low = (value + amount * (at == place) for at, value in enumerate(values))
    return high, normal, low
