"""Who decodes in the next step and who must give up its blocks. Pure: lists in, lists out; no Redis, torch or clock."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Demand:
    """What a running sequence holds and needs, in blocks."""

    held_blocks: int
    needed_blocks: int  # to write the next token's KV

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
    """Everybody decodes, unless blocks run out: then the newest give theirs back until the rest fit.

    `running` is ordered oldest first. The newest is preempted because it has the least to recompute and has waited the
    least; the oldest always goes on, so somebody always finishes. Raises nothing: a single sequence that cannot fit is
    returned in `preempt` with an empty `decode`, for the caller to end.
    """
    keep = len(running)
    missing = sum(demand.missing_blocks for demand in running)
    free = free_blocks
    while keep > 0 and missing > free:
        keep -= 1
        missing -= running[keep].missing_blocks
        free += running[keep].held_blocks
    return StepPlan(decode=list(range(keep)), preempt=list(range(len(running) - 1, keep - 1, -1)))


def can_admit(needed_blocks: int, free_blocks: int, num_running: int) -> bool:
    """Whether a new sequence fits with one block to spare for every running one and itself.

    Without the spare block an admission at the brink preempts somebody (often the newcomer) a few steps later, which
    costs a whole prefill.
    """
    return needed_blocks + num_running + 1 <= free_blocks or (num_running == 0 and needed_blocks <= free_blocks)
