"""Who decodes in the next step and who must give up its blocks. Pure: lists in, lists out; no Redis, torch or clock."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Demand:
    """What a running sequence holds and needs, in blocks."""

    held_blocks: int
    needed_blocks: int  # to write the next token's KV
    rank: int = 0  # of its class; 0 is the most urgent

    @property
    def missing_blocks(self) -> int:
        """Blocks to allocate before the step; 0 or 1."""
        return self.needed_blocks - self.held_blocks


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Positions in the running list."""

    decode: list[int]
    preempt: list[int]


def plan_step(running: Sequence[Demand], free_blocks: int) -> StepPlan:
    """Everybody decodes, unless blocks run out: then the least urgent, and of them the newest, give theirs back until
    the rest fit.

    `running` is ordered oldest first. The newest is preempted because it has the least to recompute and has waited the
    least; the oldest of the most urgent always goes on, so somebody always finishes. Raises nothing: a single sequence
    that cannot fit is returned in `preempt` with an empty `decode`, for the caller to end.
    """
    order = sorted(range(len(running)), key=lambda position: running[position].rank)
    keep = len(running)
    missing = sum(demand.missing_blocks for demand in running)
    free = free_blocks
    while keep > 0 and missing > free:
        keep -= 1
        missing -= running[order[keep]].missing_blocks
        free += running[order[keep]].held_blocks
    return StepPlan(decode=sorted(order[:keep]), preempt=order[keep:][::-1])


def can_admit(needed_blocks: int, free_blocks: int, num_running: int) -> bool:
    """Whether a new sequence fits with one block to spare for every running one and itself.

    Without the spare block an admission at the brink preempts somebody (often the newcomer) a few steps later, which
    costs a whole prefill.
    """
    return needed_blocks + num_running + 1 <= free_blocks or (num_running == 0 and needed_blocks <= free_blocks)


def expected_stay_s(step_s: float, max_new_tokens: Sequence[int], used_share: float) -> float:
    """How long a sequence stays in the batch, in seconds; 0 while that is not known.

    By what those that run now may make at most, and the share of that which those before made: not by how long those
    before stayed, which says little once longer ones come.
    """
    return step_s * used_share * sum(max_new_tokens) / len(max_new_tokens)
