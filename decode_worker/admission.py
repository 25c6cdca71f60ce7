"""How a decode worker takes sequences in: a job when there is room for it, blocks, the pull of its KV.

Runs beside the steps; what it has pulled joins the batch at the next one, so a pull never stops a running stream. What
cannot be pulled goes back to prefill. It knows the broker and the transfer; it knows no step and no model.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from broker.client import Broker
from broker.intake import Claim, Intake
from broker.job_queue import QueueEntry
from broker.rolling import Rolling
from decode_worker.batch import IDLE_WAIT_S, Batch, wait
from decode_worker.exports import Exports
from decode_worker.pull import Pull
from decode_worker.running import Running
from decode_worker.scheduler import can_admit
from decode_worker.shard_receiver import ShardReceiver
from engine.continuation import sequence_of
from engine.sequence import Sequence
from errors import KVTransferFailed, RequestError
from kv_transfer.receiver import KVReceiver
from kv_transfer.seal import Seal
from messages.job import DecodeJob, Phase, PrefillJob
from messages.kv_transfer import Release
from observability.catalogue import REFUSED_HANDLES
from settings.loading import Settings
from telemetry import get_logger

log = get_logger()

TRIP_WINDOW = 16  # round trips to Redis over which the time of one is taken
PULL_WINDOW_S = 1.0  # seconds of pulls over which their rate is taken

OpenGrammar = Callable[[Sequence], Future[RequestError | None]]  # says why a sequence's grammar cannot be followed


class Admission:
    """One per worker; one pull at a time, on a thread of its own."""

    def __init__(
        self,
        settings: Settings,
        broker: Broker,
        intake: Intake[DecodeJob],
        batch: Batch,
        pool: torch.Tensor,
        receiver: KVReceiver | ShardReceiver,
        seal: Seal,
        *,
        open_grammar: OpenGrammar,
        can_offer: bool,
    ) -> None:
        """`can_offer`: whether a worker that stops can hand on what it has just pulled."""
        self.open_grammar = open_grammar
        self.settings, self.broker, self.intake, self.batch = settings, broker, intake, batch
        self.space, self.block_size = batch.space, settings.kv.block_size
        self.pool, self.receiver, self.seal, self.can_offer = pool, receiver, seal, can_offer
        self.exports = Exports(broker, seal)
        self.num_pulling = 0
        self.pull: Pull | None = None  # of the job that is being taken
        self.pull_rate = Rolling(PULL_WINDOW_S)  # tokens per second
        self.round_trip_s = Rolling(TRIP_WINDOW)  # to Redis and back
        self.pull_thread = ThreadPoolExecutor(1, thread_name_prefix="pull")

    async def run(self, stopping: asyncio.Event) -> None:
        """Take jobs while there are slots, one pull at a time. Nothing is taken that could not join soon.

        Until `stopping` is set; a job that comes with the last read is handed on.
        """
        while not stopping.is_set():
            # Nothing is on its way here now: what was cancelled and is not here was somebody else's.
            self.batch.cancelled.intersection_update(one.claim.key for one in self.batch.here)
            room = self.settings.decode.max_running - self.num_claimed
            is_isolating = any(one.is_suspect for one in self.batch.here)
            if is_isolating or room <= 0 or not can_admit(1, self.space.num_free, self.num_claimed):
                await wait(self.batch.room_came)
                continue
            for entry in await self.intake.next_entries(1, int(IDLE_WAIT_S * 1000)):
                self.num_pulling += 1
                try:
                    await self.take_in(entry, stopping)
                finally:
                    self.num_pulling -= 1

    async def take_in(self, entry: QueueEntry[DecodeJob], stopping: asyncio.Event) -> None:
        """Take the job, and pull its KV meanwhile where there is room: mostly both come to something."""
        self.pull = await self.begin_pull(entry.job)
        claim = await self.intake.claim(entry)
        if claim is not None:
            await self.admit(claim, stopping)
        if self.pull is not None:
            await self.pull.end()
            self.pull = None

    async def admit(self, claim: Claim[DecodeJob], stopping: asyncio.Event) -> None:
        """Have the sequence's KV pulled into blocks of its own; without its KV it goes back to prefill."""
        job, taken = claim.job, claim.taken
        meters, taken_s = self.intake.meters, time.perf_counter()
        try:
            self.check_handle(job)
        except KVTransferFailed as error:
            # Nobody is known to release it to; and where every owner's secret is another than ours, this has to end.
            meters.count(REFUSED_HANDLES)
            log.warning("kv_handle_refused", request_id=job.request_id, reason=str(error))
            if self.intake.is_poison(claim):
                await self.intake.fail(claim, str(error))
            else:
                await self.send_back(claim, attempt=claim.attempt + 1)
            return
        sequence = sequence_of(taken.request, taken.choice, taken.events)
        if sequence.num_tokens != job.kv_handle.num_tokens + 1:
            # Its last owner died in the middle of decoding: the offered KV is older than the published tokens. As they
            # were computed, nobody had died of it before, and the count begins anew.
            await self.release(job)
            await self.send_back(claim, attempt=0)
            return
        if self.intake.is_poison(claim):
            await self.release(job)
            await self.intake.fail(claim, f"{claim.attempt} workers failed while working on this request")
            return
        needed = len(job.kv_handle.block_ids)
        if needed > self.space.num_blocks:
            await self.release(job)
            await self.intake.fail(
                claim, f"the prompt takes {needed} KV blocks, this worker has {self.space.num_blocks}"
            )
            return
        self.pull = self.pull or await self.begin_pull(job)
        while self.pull is None and claim.key not in self.batch.cancelled and not stopping.is_set():
            if self.intake.is_late(claim):
                await self.release(job)
                await self.intake.expire(claim)
                return
            await wait(self.batch.room_came)
            self.pull = await self.begin_pull(job)
        meters.kv_wait.observe(time.perf_counter() - taken_s)
        if claim.key in self.batch.cancelled:
            self.batch.cancelled.discard(claim.key)
            await self.release(job)
            await self.intake.lost(claim)
            return
        if self.pull is None or stopping.is_set() and not self.can_offer:
            await self.release(job)
            await self.send_back(claim, attempt=claim.attempt)
            return
        opening = None if taken.request.sampling.grammar is None else self.open_grammar(sequence)  # beside the pull
        try:
            took_s = await self.pull.done()
        except KVTransferFailed as error:
            log.warning("kv_pull_failed", request_id=job.request_id, owner=job.kv_handle.worker_id, reason=str(error))
            await self.release(job)
            await self.send_back(claim, attempt=claim.attempt)
            return
        self.pull_rate.note(job.kv_handle.num_tokens, took_s)
        facts: dict[str, str | int] = {"choice": job.choice, "blocks": needed, "owner": job.kv_handle.worker_id}
        meters.phase(meters.pull, took_s, "kv_pull", taken.request, **facts)
        log.debug("kv_pulled", request_id=job.request_id, blocks=needed, ms=round(took_s * 1000, 2))
        refusal = None if opening is None else await asyncio.wrap_future(opening)
        if refusal is not None:
            await self.release(job)
            await self.intake.fail(claim, str(refusal), refusal.status)
            return
        sequence.block_table = self.pull.keep()
        sequence.num_computed_tokens = job.kv_handle.num_tokens
        self.batch.join(Running(claim, sequence, is_suspect=self.intake.is_suspect(claim)))
        began = time.perf_counter()
        await self.release(job)
        self.round_trip_s.note(time.perf_counter() - began, 1)

    async def begin_pull(self, job: DecodeJob) -> Pull | None:
        """None where there are no blocks for it, or its handle cannot be used, which `admit` tells."""
        handle = job.kv_handle
        try:
            self.check_handle(job)
        except KVTransferFailed:
            return None
        export = await self.exports.find(handle)
        if not can_admit(len(handle.block_ids), self.space.num_free, self.batch.num_here):
            return None
        return Pull(
            self.batch,
            len(handle.block_ids),
            self.pull_thread,
            lambda block_ids: self.receiver.pull(handle, self.pool, block_ids, export, job.request_id),
        )

    def check_handle(self, job: DecodeJob) -> None:
        """Before the handle is used for anything. Raises KVTransferFailed."""
        handle = job.kv_handle
        self.seal.check_handle(handle, job.request_id, job.choice, job.hop)
        if len(handle.block_ids) != -(-handle.num_tokens // self.block_size):
            raise KVTransferFailed(f"{len(handle.block_ids)} blocks for the KV of {handle.num_tokens} tokens")

    async def release(self, job: DecodeJob) -> None:
        """Tell the owner that its blocks are free. It finds out by itself too, only later."""
        await self.broker.inbox(job.kv_handle.worker_id).send(Release(job.kv_handle.transfer_id))

    async def send_back(self, claim: Claim[DecodeJob], attempt: int) -> None:
        """To the prefill queue: recompute prompt + published tokens."""
        job = claim.job
        again = PrefillJob(job.request_id, job.choice, job.hop + 1, attempt, len(claim.taken.events))
        await self.intake.hand_over(claim, again, Phase.PREFILL_QUEUED)

    @property
    def num_claimed(self) -> int:
        """Sequences that are ours: running, pulled or being pulled."""
        return self.batch.num_here + self.num_pulling

    @property
    def is_pull_stuck(self) -> bool:
        """Whether a pull takes longer than any transport may: the loop comes round, but nothing new ever joins it."""
        return self.pull is not None and self.pull.lasts_s > self.settings.queue.stall_s
