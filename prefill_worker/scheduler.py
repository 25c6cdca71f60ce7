"""Which prompt tokens are computed next. Pure: lists in, lists out; no Redis, torch or clock."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Chunk:
    """`num_tokens` of the sequence at place `position` of the running list."""

    position: int
    num_tokens: int


def plan_step(remaining_tokens: Sequence[int], token_budget: int) -> list[Chunk]:
    """Chunks of one step, oldest sequence first, together at most `token_budget` tokens.

    `remaining_tokens[i]` is what sequence i has yet to compute (at least 1). First come, first served: a short prompt
    that arrives behind a long one shares the long one's last step, and never waits for more than one budget a step.
    """
    chunks: list[Chunk] = []
    left = token_budget
    for position, remaining in enumerate(remaining_tokens):
        if left == 0:
            break
        num_tokens = min(remaining, left)
        chunks.append(Chunk(position, num_tokens))
        left -= num_tokens
    return chunks
