"""How a worker comes by its jobs and gets rid of them: take, reclaim from the dead, renew, acknowledge.

Both workers use it, so that the rule "hand over first, acknowledge last" is written once. Knows the queue, the request
log and the heartbeat; knows nothing of models, blocks or batches.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from broker.choice import Append, Taken
from broker.client import Broker
from broker.deadline import deadline_event, is_past, now_ms
from broker.hand_over import HandOver
from broker.heartbeat import Heartbeat
from broker.job_queue import EVERY_CLASS, JobQueue, QueueEntry
from errors import WireError
from messages.job import DecodeJob, Phase, PrefillJob
from messages.request import Priority
from messages.token_event import FinishReason, TokenEvent
from observability.catalogue import EXPIRED, FAILED, LOST, RECLAIMED
from observability.worker_meters import WorkerMeters
from settings.broker import QueueSettings
from telemetry import get_logger

log = get_logger()

JobT = TypeVar("JobT", PrefillJob, DecodeJob)


@dataclass(frozen=True, slots=True, eq=False)
class Claim(Generic[JobT]):
    """A job that is ours until it is handed over, done or lost."""

    entry: QueueEntry[JobT]
    taken: Taken

    @property
    def job(self) -> JobT:
        """The job itself."""
        return self.entry.job

    @property
    def key(self) -> tuple[str, int]:
        """(request_id, choice): what cancels and states are named by."""
        return self.job.request_id, self.job.choice

    @property
    def priority(self) -> Priority:
        """The class of the queue that it came by, hence of its request."""
        return self.entry.priority

    @property
    def attempt(self) -> int:
        """How many workers died or failed on this job before."""
        return attempt_of(self.entry)

    @property
    def waited_s(self) -> float:
        """From the job's being put on the queue to its taking, by Redis' clock."""
        put_ms = int(self.entry.entry_id.partition(b"-")[0])
        return max(0, self.taken.taken_ms - put_ms) / 1000

    def next_event(self, event: TokenEvent, index: int) -> Append:
        """`event` at `index` of the choice's stream, under our epoch."""
        request = self.taken.request
        return Append(request.request_id, self.taken.choice, self.taken.epoch, index, event, request.api_id)


AnyClaim = Claim[PrefillJob] | Claim[DecodeJob]


def attempt_of(entry: "QueueEntry[PrefillJob] | QueueEntry[DecodeJob]") -> int:
    """How many workers died or failed on this job before."""
    return entry.job.attempt + entry.deliveries - 1


class Intake(Generic[JobT]):
    """One per worker and queue. A claim may be got rid of through any."""

    def __init__(
        self,
        broker: Broker,
        queue: JobQueue[JobT],
        heartbeat: Heartbeat,
        worker_id: str,
        phase: Phase,
        settings: QueueSettings,
        meters: WorkerMeters | None = None,
    ) -> None:
        self._broker = broker
        self._queue: JobQueue[JobT] = queue
        self._heartbeat = heartbeat
        self._worker_id, self._phase = worker_id, phase
        self._reclaim_every_s = settings.lease_s / 4
        self._max_deliveries = settings.max_deliveries
        self._clock_tolerance_s = settings.clock_tolerance_s
        self._reclaim_at = 0.0
        self.meters = meters or WorkerMeters()

    async def next_claims(
        self, count: int, block_ms: int, classes: Sequence[Priority] = EVERY_CLASS
    ) -> list[Claim[JobT]]:
        """Up to `count` jobs of `classes`, the dead workers' first and without new ones; a suspect is the last of them.
        Waits at most `block_ms` (0: not at all) for new ones. A job whose time is over is ended here and not among
        them."""
        return await self._claims(await self.next_entries(count, block_ms, classes))

    async def next_entries(
        self, count: int, block_ms: int, classes: Sequence[Priority] = EVERY_CLASS
    ) -> list[QueueEntry[JobT]]:
        """The same jobs before they are taken (`claim`): their leases are ours from here on."""
        entries = await self._reclaim_if_due(count, classes)
        return self._hold(entries or await self._queue.take(self._worker_id, count, block_ms, classes))

    def _hold(self, entries: list[QueueEntry[JobT]]) -> list[QueueEntry[JobT]]:
        """Have them renewed."""
        for entry in entries:
            self._heartbeat.hold(entry)
        return entries

    async def _claims(self, entries: Sequence[QueueEntry[JobT]]) -> list[Claim[JobT]]:
        """Those of the entries that there is something to do about, taken."""
        claims = [await self.claim(entry) for entry in entries]
        return [claim for claim in claims if claim is not None]

    async def claim(self, entry: QueueEntry[JobT]) -> Claim[JobT] | None:
        """Take the entry's job. None when there is nothing to do about it, or no longer."""
        try:
            taken = await self._broker.requests.take(entry.job, self._phase)
        except WireError as error:
            # Of the record or the tokens. Raised, it would end us, and one worker after the other after us.
            log.error("request_undecodable", request_id=entry.job.request_id, error=str(error))
            self._heartbeat.drop(entry)
            await self._queue.refuse(entry, "a worker could not read the request; are versions mixed?")
            return None
        if taken is None:  # finished, cancelled, or left over from a hand-over that already happened
            await self._let_go(entry)
            return None
        claim = Claim(entry, taken)
        self._note_wait(claim)
        if self.is_late(claim):
            await self.expire(claim)
            return None
        return claim

    def _note_wait(self, claim: Claim[JobT]) -> None:
        """A reclaimed job was with a worker most of the time: that is no wait."""
        if claim.entry.deliveries > 1:
            self.meters.span("reclaimed", 0.0, claim.taken.request, choice=claim.taken.choice)
        elif claim.taken.taken_ms:
            queue = self.meters.queues[claim.entry.queue]
            name = f"queue {claim.entry.queue}"
            self.meters.phase(queue, claim.waited_s, name, claim.taken.request, choice=claim.taken.choice)

    async def _reclaim_if_due(self, count: int, classes: Sequence[Priority]) -> list[QueueEntry[JobT]]:
        # Raised, not logged: without its beat a worker looks dead while it holds on to what it has claimed.
        assert self._heartbeat.is_alive, "the heartbeat thread has ended"
        return await self._reclaim(count, classes) if time.monotonic() >= self._reclaim_at else []

    async def _reclaim(self, count: int, classes: Sequence[Priority]) -> list[QueueEntry[JobT]]:
        """Dead workers' jobs, one after the other without a pause: every one of them has a client that waits."""
        entries: list[QueueEntry[JobT]] = []
        while len(entries) < count and not any(self._is_suspect(entry) for entry in entries):
            reclaimed = await self._queue.reclaim(self._worker_id, 1, classes, self._heartbeat.held())
            if not reclaimed:
                self._reclaim_at = time.monotonic() + self._reclaim_every_s
                break
            entries += reclaimed
        self.meters.count(RECLAIMED, len(entries))
        for entry in entries:
            log.warning("job_reclaimed", request_id=entry.job.request_id, deliveries=entry.deliveries)
        return entries

    def is_ours(self, claim: AnyClaim) -> bool:
        """Whether the claim's lease stands, as far as the heartbeat knows. If not, others have the job: drop it."""
        return self._heartbeat.holds(claim.entry)

    def is_suspect(self, claim: AnyClaim) -> bool:
        """Whether workers died that had this job, so that one death more makes it a poison: it is computed alone, and
        nothing is taken meanwhile, so that none of the others can be blamed in its place.

        Not from the first death on: nearly every death has another cause, and its jobs should be back at once.
        """
        return self._is_suspect(claim.entry)

    def _is_suspect(self, entry: QueueEntry[PrefillJob] | QueueEntry[DecodeJob]) -> bool:
        return attempt_of(entry) >= max(1, self._max_deliveries - 1)

    def is_poison(self, claim: AnyClaim) -> bool:
        """Whether the job took too many workers down to be tried again."""
        return claim.attempt >= self._max_deliveries

    def is_late(self, claim: AnyClaim) -> bool:
        """Whether the request's deadline is past by more than the hosts' clocks may differ."""
        return is_past(claim.taken.request, now_ms(), self._clock_tolerance_s)

    async def done(self, *claims: AnyClaim) -> None:
        """These sequences have ended: acknowledge, in one round trip."""
        await self._let_go(*(claim.entry for claim in claims))

    async def lost(self, claim: AnyClaim) -> None:
        """We were fenced. The entry is acknowledged only if nobody can need it: where another worker holds the very
        same entry, our acknowledgement would destroy its claim."""
        self._heartbeat.drop(claim.entry)
        self.meters.count(LOST)
        is_stale = await self._broker.requests.ack_if_stale(claim.entry)
        log.info("job_lost", request_id=claim.job.request_id, choice=claim.job.choice, is_stale=is_stale)

    async def hand_over(self, claim: AnyClaim, job: PrefillJob | DecodeJob, phase: Phase) -> bool:
        """Put `job` on its queue and acknowledge ours, in one step. False when we were fenced."""
        self._heartbeat.drop(claim.entry)
        handed_over = await self._broker.requests.hand_over(claim.entry, claim.taken.epoch, job, phase)
        if not handed_over:
            log.info("hand_over_refused", request_id=claim.job.request_id, choice=claim.job.choice)
        return handed_over

    async def publish_and_hand_over(
        self, events: Sequence[Append], given: Sequence[tuple[AnyClaim, PrefillJob | DecodeJob]], phase: Phase
    ) -> tuple[list[bool], set[tuple[str, int]]]:
        """Publish `events`, and put each job in place of its claim's, in one round trip; a job builds on its claim's
        event. Which events stand, and which choices were handed over."""
        num_events = {(event.request_id, event.choice): event.index + 1 for event in events}
        for claim, _ in given:
            self._heartbeat.drop(claim.entry)
        accepted, handed_over = await self._broker.requests.append_and_hand_over(
            events,
            [HandOver(claim.entry, claim.taken.epoch, job, phase, num_events[claim.key]) for claim, job in given],
        )
        gone = {claim.key for (claim, _), ok in zip(given, handed_over, strict=True) if ok}
        # Where an answer got lost, the second try finds its epoch given up: what was handed over had been published.
        return [ok or (each.request_id, each.choice) in gone for each, ok in zip(events, accepted, strict=True)], gone

    async def take_back(self, claim: AnyClaim, job: PrefillJob | DecodeJob, phase: Phase) -> bool:
        """Put `job` in place of the one that the claim was handed over with. False when somebody has taken that one,
        or the sequence has ended."""
        # The hand-over left the epoch one above the claim's. It is nobody's, and a taker would have raised it.
        epoch = claim.taken.epoch + 1
        return await self._broker.requests.hand_over(claim.entry, epoch, job, phase)

    async def fail(self, claim: AnyClaim, message: str, status: int = 500) -> None:
        """End the sequence with an error."""
        self.meters.count(FAILED)
        log.error("request_failed", request_id=claim.job.request_id, choice=claim.job.choice, reason=message)
        await self._end(claim, TokenEvent(finish_reason=FinishReason.ERROR, error=message, error_status=status))

    async def expire(self, claim: AnyClaim) -> None:
        """End a sequence that is late."""
        self.meters.count(EXPIRED)
        log.info("request_expired", request_id=claim.job.request_id, choice=claim.job.choice, phase=self._phase)
        await self._end(claim, deadline_event(claim.taken.request))

    async def _end(self, claim: AnyClaim, event: TokenEvent) -> None:
        index = len(await self._broker.request_reader.read(*claim.key))
        (accepted,) = await self._broker.requests.append([claim.next_event(event, index)])
        await (self.done(claim) if accepted else self.lost(claim))

    async def _let_go(self, *entries: QueueEntry[PrefillJob] | QueueEntry[DecodeJob]) -> None:
        for entry in entries:
            self._heartbeat.drop(entry)
        await self._queue.ack(entries)
