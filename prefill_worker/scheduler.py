"""Which prompt tokens are computed next. Pure: lists in, lists out; no Redis, torch or clock."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from messages.request import Priority

OLDEST_SHARE = 8  # one part in so many of a step is the oldest sequence's, whatever its class
TAKE_COUNT = 4  # jobs per read: enough to fill a step with short prompts, few enough to leave some to other workers


@dataclass(frozen=True, slots=True)
class Chunk:
    """`num_tokens` of the sequence at place `position` of the running list."""

    position: int
    num_tokens: int


def plan_step(remaining_tokens: Sequence[int], token_budget: int, ranks: Sequence[int] = ()) -> list[Chunk]:
    """Chunks of one step, the most urgent and then the shortest first, together at most `token_budget` tokens.

    `remaining_tokens[i]` is what sequence i has yet to compute (at least 1), `ranks[i]` its class (0: the most urgent;
    without ranks all are of one class); the list is ordered oldest first, and of two equally short the older comes
    first. Shortest remainder first has the least mean time to the first token (Schrage 1968), and a short prompt waits
    for no long one. The oldest always gets its share, so that what holds blocks is done some day.
    """
    if not remaining_tokens:
        return []
    shares = [0] * len(remaining_tokens)
    shares[0] = min(remaining_tokens[0], max(1, token_budget // OLDEST_SHARE))
    left = token_budget - shares[0]
    for position in sorted(range(len(shares)), key=lambda one: (ranks[one] if ranks else 0, remaining_tokens[one])):
        more = min(remaining_tokens[position] - shares[position], left)
        shares[position] += more
        left -= more
    return [Chunk(position, num_tokens) for position, num_tokens in enumerate(shares) if num_tokens]


def open_classes(
    at_hand: Sequence[tuple[Priority, int]], waiting: Collection[Priority], token_budget: int
) -> list[Priority]:
    """The classes of which a worker takes more jobs, given the (class, tokens to compute) of what it has claimed and
    the classes of those that wait for blocks.

    A class is open while less than a step's worth of it and of what is more urgent is at hand and none of those waits:
    so a long prompt keeps nobody more urgent waiting, and what is not needed yet is left to other workers. A prompt of
    more than a step counts as half of one: what is taken beside it may be short.
    """
    return [
        priority
        for priority in Priority
        if sum(_weight(tokens, token_budget) for other, tokens in at_hand if other.rank <= priority.rank) < token_budget
        and all(other.rank > priority.rank for other in waiting)
    ]


def _weight(num_tokens: int, token_budget: int) -> int:
    return num_tokens if num_tokens <= token_budget else -(-token_budget // 2)
