"""Prompts that the decode worker prefills itself: how it comes by them, their chunks, their first token.

`placement.py` decides, this file does. A sequence begins here as in a prefill worker and goes on in the batch without
a transfer; until it has ended, its PrefillJob is the entry under which the worker has it. Knows the broker and the
engine; knows nothing of the steps of those who decode.
"""

import asyncio
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from broker.bid import Bid
from broker.client import Broker
from broker.intake import AnyClaim, Claim
from broker.local_intake import LocalIntake
from broker.rolling import Rolling
from broker.status_board import StatusBoard
from decode_worker.batch import IDLE_WAIT_S, Batch, wait
from decode_worker.placement import (
    Here,
    Limits,
    There,
    are_beside,
    bid_for,
    chunk_tokens,
    is_local,
    plan_chunks,
    remote_workers,
)
from decode_worker.prefill_pace import PrefillPace
from decode_worker.running import Running
from decode_worker.scheduler import can_admit
from engine.continuation import event_of, sequence_of
from engine.model_runner import ModelRunner, PrefillChunk
from engine.sampler import Sampled
from messages import Phase, PrefillJob
from observability.catalogue import FENCED, PREFIX_HIT, PREFIX_QUERIED
from settings import Settings
from telemetry import get_logger

log = get_logger()

FIGURES_AGE_S = 1.0  # how old what the prefill workers say of themselves may be
MEASURED_AGE_S = 10.0  # how old the last measurement of our own prefill may be
LOOK_WINDOW = 8  # prompts that came for a look, over which the share of those that stayed is taken
LEAST_LOOK_SHARE = 0.1  # below, only one turn in LOOK_WINDOW looks


def limits_of(settings: Settings) -> Limits:
    """What the settings allow."""
    decode = settings.decode
    return Limits(
        decode.local_prefill,
        decode.local_prefill_max_stall_ms / 1000,
        decode.local_prefill_max_ms / 1000,
        settings.prefill.token_budget_on("cpu"),
    )


class LocalPrefill:
    """One per worker. `pace` is that of this worker's own prefill; without a measurement nothing is taken."""

    def __init__(
        self,
        settings: Settings,
        broker: Broker,
        board: StatusBoard,
        intake: LocalIntake,
        batch: Batch,
        runner: ModelRunner,
        compute_thread: ThreadPoolExecutor,
        read_step_s: Callable[[], float],
        read_way: Callable[[], tuple[float, float]],
    ) -> None:
        """`read_step_s`: what a decode step takes; `read_way`: (seconds of a hand-off, tokens per second of a pull)."""
        self.settings, self.broker, self.board = settings, broker, board
        self.intake, self.batch, self.space = intake, batch, batch.space
        self.runner, self.thread = runner, compute_thread
        self.read_step_s, self.read_way = read_step_s, read_way
        self.limits, self.pace = limits_of(settings), PrefillPace()
        self.remote = 0, 0.0  # prefill workers, their tokens per second
        self.shares_cores = False  # with some of them
        self.remote_at = float("-inf")  # time.monotonic()
        self.stayed = Rolling(LOOK_WINDOW)
        self.stayed.note(1.0, 1)  # until it is known better
        self.num_turns = 0
        self.measured_at = time.monotonic()
        self.strays_at = 0.0  # time.monotonic(); when to look next for what lies there though nobody bids

    def turn_off(self) -> None:
        """Take nothing, whatever the settings say."""
        self.limits = replace(self.limits, mode="never")

    # -- taking --------------------------------------------------------------------------------------------------

    async def run(self, stopping: asyncio.Event) -> None:
        """Take what suits, and see to it that nothing is left in the local queue by those who are gone."""
        while not stopping.is_set():
            if self.limits.mode == "auto" and time.monotonic() > self.remote_at + FIGURES_AGE_S:
                workers = await self.broker.registry.live()
                self.remote, self.shares_cores = remote_workers(workers), are_beside(workers, socket.gethostname())
                self.remote_at = time.monotonic()
            self.num_turns += 1
            bid = self.bid()
            if bid is None and not self.intake.has_bid and time.monotonic() < self.strays_at:
                await wait(self.batch.room_came)
                continue
            self.strays_at = time.monotonic() + self.settings.queue.lease_s / 4
            claims = await (self.intake.strays() if bid is None else self.intake.seek(bid, int(IDLE_WAIT_S * 1000)))
            for claim in claims:
                await self.admit(claim, stopping)
        for claim in await self.intake.strays():
            await self.admit(claim, stopping)

    def bid(self) -> Bid | None:
        """What would be taken as things stand."""
        if any(one.is_suspect for one in self.batch.here) or (self.limits.mode == "auto" and self.batch.prefilling):
            return None
        looks = self.stayed.value >= LEAST_LOOK_SHARE or self.num_turns % LOOK_WINDOW == 0
        tries = time.monotonic() > self.measured_at + MEASURED_AGE_S
        there = There(*self.remote, *self.read_way(), shares_cores=self.shares_cores)
        return bid_for(self.limits, self.here(), there, self.pace, looks=looks, tries=tries)

    def here(self) -> Here:
        """The worker as it is."""
        batch, block_size = self.batch, self.space.block_size
        return Here(
            num_running=len(batch.running) + len(batch.joining),
            step_s=self.read_step_s(),
            room=self.settings.decode.max_running - batch.num_here,
            free_tokens=max(0, self.space.num_free - batch.num_here - 1) * block_size,
            cached_tokens=self.space.num_cached * block_size,
        )

    async def admit(self, claim: Claim[PrefillJob], stopping: asyncio.Event) -> None:
        """Give the sequence its blocks; what does not suit, or was another's before, goes to the prefill workers."""
        sequence = sequence_of(claim.taken.request, claim.taken.choice, claim.taken.events)
        if sequence.images:  # only prefill workers can encode them
            await self.pass_on(claim)
            return
        if sequence.sampling.grammar is not None:
            refusal = await asyncio.wrap_future(self.runner.grammars.open(sequence))
            if refusal is not None:
                await self.intake.fail(claim, str(refusal), refusal.status)
                return
        cached = [] if sequence.lists_prompt else self.space.match(sequence.token_ids, sequence.images)
        missing = sequence.num_blocks(self.space.block_size) - len(cached)
        num_cached = len(cached) * self.space.block_size
        bid = self.bid()
        suits = claim.entry.deliveries == 1 and is_local(bid, sequence.num_tokens, num_cached)
        if bid is not None and sequence.num_tokens > bid.most_tokens:
            self.stayed.note(float(suits), 1)
        if stopping.is_set() or not suits or not can_admit(missing, self.space.num_free, self.batch.num_here):
            self.space.free(cached)
            await self.pass_on(claim)
            return
        sequence.block_table = [*cached, *self.space.allocate(missing)]
        sequence.num_computed_tokens = sequence.num_cached_tokens = num_cached
        self.intake.meters.count(PREFIX_QUERIED, sequence.num_tokens)
        self.intake.meters.count(PREFIX_HIT, num_cached)
        self.batch.prefilling.append(Running(claim, sequence))
        self.batch.work_came.set()

    async def pass_on(self, claim: AnyClaim) -> None:
        """To the prefill queue. Where tokens were published since the job was made, nobody died of it before."""
        job, num_published = claim.job, len(claim.taken.events)
        has_grown = isinstance(job, PrefillJob) and num_published > job.num_published
        attempt = 0 if has_grown else claim.attempt
        again = PrefillJob(job.request_id, job.choice, job.hop + 1, attempt, num_published)
        await self.intake.hand_over(claim, again, Phase.PREFILL_QUEUED)

    # -- computing -----------------------------------------------------------------------------------------------

    async def step(self) -> None:
        """One chunk, between two steps of those who decode; the first token of who is through with it."""
        await self.drop_ended()
        if not self.batch.prefilling or any(one.is_suspect for one in self.batch.here):
            return
        budget = chunk_tokens(self.limits, self.here(), self.pace)
        if budget == 0:  # who came meanwhile must not wait
            await self.leave()
            return
        batch = self.batch.prefilling
        shares = plan_chunks([one.remaining_tokens for one in batch], budget)
        chunks = [PrefillChunk(one.sequence, share) for one, share in zip(batch, shares, strict=False)]
        began = time.perf_counter()
        sampled = await asyncio.get_running_loop().run_in_executor(self.thread, self.runner.prefill, chunks)
        self.pace.note(sum(shares), time.perf_counter() - began)
        self.measured_at = time.monotonic()
        self.board.prefilled_tokens += sum(shares)
        for one, token in zip(list(batch), sampled, strict=False):
            if token is not None:
                await self.publish(one, token)

    async def publish(self, one: Running, token: Sampled) -> None:
        """The first token; then the sequence decodes with the others."""
        event = event_of(one.sequence, token, self.runner.eos_token_ids)
        (accepted,) = await self.broker.requests.append([one.claim.next_event(event, one.sequence.num_output_tokens)])
        if accepted:
            self.note_prefill(one)
        else:
            self.intake.meters.count(FENCED)
        if not token.error:  # what gave no finite logits is not to be reused
            self.space.remember(one.sequence.token_ids, one.sequence.block_table, one.sequence.images)
        if accepted and event.finish_reason is None:
            one.sequence.token_ids.append(token.token_id)
            self.batch.prefilling.remove(one)
            self.batch.join(one)
            self.batch.room_came.set()
            return
        self.batch.leave(one)
        await (self.intake.done(one.claim) if accepted else self.intake.lost(one.claim))

    def note_prefill(self, one: Running) -> None:
        """Its token is published; its decoding begins."""
        meters, now_s = self.intake.meters, time.perf_counter()
        facts = {"choice": one.claim.job.choice, "tokens": one.sequence.num_computed_tokens}
        meters.phase(meters.prefill, now_s - one.since_s, "prefill", one.claim.taken.request, **facts)
        one.since_s = now_s

    async def drop_ended(self) -> None:
        """Those that were ended from outside, that are late, or that others took over while we slept."""
        for one in list(self.batch.prefilling):
            is_cancelled = one.claim.key in self.batch.cancelled
            if is_cancelled or not self.intake.is_ours(one.claim):
                self.batch.cancelled.discard(one.claim.key)
                self.batch.leave(one)
                await self.intake.lost(one.claim)
            elif self.intake.is_late(one.claim):
                self.batch.leave(one)
                await self.intake.expire(one.claim)

    async def leave(self) -> None:
        """What is not through goes to the prefill workers."""
        for one in list(self.batch.prefilling):
            self.batch.leave(one)
            await self.pass_on(one.claim)
