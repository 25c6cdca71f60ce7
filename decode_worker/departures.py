"""Who leaves the batch of a decode worker, and why: it has ended, others took it over, its time or the blocks ran out.

Knows the batch and the queue that it came by; knows no step and no model.
"""

import time
from collections.abc import Iterable, Sequence

from broker.intake import Intake
from broker.rolling import Rolling
from decode_worker.batch import Batch
from decode_worker.running import Running
from messages.job import DecodeJob, Phase
from observability.catalogue import PREEMPTED
from observability.worker_meters import WorkerMeters
from telemetry import get_logger

log = get_logger()

SEQUENCE_WINDOW = 32  # sequences over which the share of its max_new_tokens that one makes is taken


class Departures:
    """One per worker."""

    def __init__(self, intake: Intake[DecodeJob], batch: Batch, meters: WorkerMeters, block_size: int) -> None:
        self.intake, self.batch, self.meters = intake, batch, meters
        self.block_size = block_size
        self.used_share = Rolling(SEQUENCE_WINDOW)

    def retire(self, some: Iterable[Running]) -> None:
        """They leave the batch, if they are in it."""
        for one in some:
            if one in self.batch.running:
                self.used_share.note(one.sequence.num_output_tokens / one.sequence.sampling.max_new_tokens, 1)
                self.batch.leave(one)

    def leaving(self) -> list[Running]:
        """Whose sequence has ended, whom others took over while we slept, and whose time is over."""
        return [one for one in self.batch.running if self.is_lost(one) or self.intake.is_late(one.claim)]

    def is_lost(self, one: Running) -> bool:
        """Whether it is no longer ours."""
        return one.claim.key in self.batch.cancelled or not self.intake.is_ours(one.claim)

    async def see_off(self, leaving: Sequence[Running]) -> None:
        """Stop decoding these."""
        lost = [one for one in leaving if self.is_lost(one)]
        self.batch.cancelled.difference_update(one.claim.key for one in lost)  # the rest may be on its way here
        self.retire(leaving)
        for one in leaving:
            self.note_departure(one, "lost" if one in lost else "expired")
            await (self.intake.lost(one.claim) if one in lost else self.intake.expire(one.claim))

    def note_departure(self, one: Running, why: str) -> None:
        """It goes on elsewhere, or was ended from elsewhere."""
        facts: dict[str, str | int] = {"left": why, "choice": one.claim.job.choice}
        facts["tokens"] = one.sequence.num_output_tokens
        self.meters.span("decode", time.perf_counter() - one.since_s, one.claim.taken.request, **facts)

    async def preempt(self, one: Running) -> None:
        """Blocks ran out: the sequence gives its own back and is recomputed from its tokens."""
        self.meters.count(PREEMPTED)
        self.note_departure(one, "preempted")
        log.info("sequence_preempted", request_id=one.claim.job.request_id, num_tokens=one.sequence.num_tokens)
        if one.sequence.num_blocks(self.block_size) > self.batch.space.num_blocks:
            await self.intake.fail(
                one.claim, f"the sequence outgrew the KV pool of {self.batch.space.num_blocks} blocks"
            )
        else:
            await self.intake.hand_over(one.claim, one.prefill_job(one.claim.job.hop + 1), Phase.PREFILL_QUEUED)
        self.batch.free(one.sequence)
