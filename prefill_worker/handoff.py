"""What becomes of a prompt that is computed: its blocks are offered, its first token published, its job handed over.

The blocks stay ours until a decode worker has pulled them. Knows the broker and the transfer; knows no model.
"""

import asyncio
import time
from collections.abc import Container
from concurrent.futures import Executor
from dataclasses import dataclass

from broker.client import Broker
from broker.intake import Intake
from engine.continuation import event_of
from engine.sampler import Sampled
from kv_transfer.offers import Offer, Offers
from messages.job import DecodeJob, Phase, PrefillJob
from messages.token_event import TokenEvent
from observability.catalogue import FENCED
from observability.worker_meters import WorkerMeters
from prefill_worker.batch import Batch
from prefill_worker.running import Running

Checksums = asyncio.Future[tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Computed:
    """A prompt whose last chunk is computed."""

    one: Running
    token: Sampled
    checksums: Checksums  # of its blocks, on their way


class Handoff:
    """One per worker. `compute_thread`: the one that computes, which takes the checksums too."""

    def __init__(
        self,
        broker: Broker,
        meters: WorkerMeters,
        intake: Intake[PrefillJob],
        batch: Batch,
        offers: Offers,
        eos_token_ids: Container[int],
        compute_thread: Executor,
    ) -> None:
        self.broker, self.meters, self.intake = broker, meters, intake
        self.batch, self.offers = batch, offers
        self.eos_token_ids = eos_token_ids
        self.compute_thread = compute_thread

    def sum_blocks(self, block_ids: list[int]) -> Checksums:
        """What these blocks hold once the compute thread has done what it was given before."""
        return asyncio.get_running_loop().run_in_executor(self.compute_thread, self.offers.checksums, block_ids)

    async def publish(self, done: list[Computed]) -> None:
        """The KV of who goes on is offered; then the first tokens and the next jobs go out in one round trip."""
        if not done:
            return
        began_s = time.perf_counter()
        events = [event_of(each.one.sequence, each.token, self.eos_token_ids) for each in done]
        offers = [
            self.offer(each.one) if event.finish_reason is None else None
            for each, event in zip(done, events, strict=True)
        ]
        telling = asyncio.create_task(self.tell(done, events, offers))
        await asyncio.sleep(0)  # it is on its way
        self.remember(done, offers)
        published, handed_over = await telling
        took_s = time.perf_counter() - began_s
        self.meters.publish.observe(took_s)
        for each, offer, is_published in zip(done, offers, published, strict=True):
            one = each.one
            if is_published:
                self.note_prefill(one)
            if offer is None:
                self.batch.free(one)
            elif one.claim.key in handed_over:
                self.note_offer(offer, took_s)
                await self.offers.put_checksums(offer, each.checksums)
            else:
                self.offers.close(offer.transfer_id)
                self.batch.blocks_freed.set()
            if not is_published:
                self.meters.count(FENCED)
                await self.intake.lost(one.claim)
            elif offer is None:
                await self.intake.done(one.claim)

    def offer(self, one: Running) -> Offer:
        """Its blocks, under a handle that nobody knows yet; from now on they are the offer's to free."""
        job, sequence = one.claim.job, one.sequence
        return self.offers.open(
            one.claim.taken.request, job.choice, job.hop + 1, sequence.block_table, sequence.num_computed_tokens
        )

    async def tell(
        self, done: list[Computed], events: list[TokenEvent], offers: list[Offer | None]
    ) -> tuple[list[bool], set[tuple[str, int]]]:
        """Publish the tokens, and put the DecodeJobs of those with an offer, each of which acknowledges its
        PrefillJob. Whose tokens stand, and who is handed over."""
        appends = [
            each.one.claim.next_event(event, each.one.sequence.num_output_tokens)
            for each, event in zip(done, events, strict=True)
        ]
        # Without our own deliveries: what has been prefilled did not die of it.
        jobs = [
            (each.one.claim, DecodeJob(*offer.key, offer.hop, offer.handle, each.one.claim.job.attempt))
            for each, offer in zip(done, offers, strict=True)
            if offer is not None
        ]
        return await self.intake.publish_and_hand_over(appends, jobs, Phase.DECODE_QUEUED)

    def remember(self, done: list[Computed], offers: list[Offer | None]) -> None:
        """The blocks are of use for the next prompt that begins alike; but for those of an offer that is closed
        already, which are no longer ours."""
        for each, offer in zip(done, offers, strict=True):
            sequence = each.one.sequence
            # What gave no finite logits is not to be reused.
            if not each.token.error and (offer is None or self.offers.is_open(offer)):
                self.batch.space.remember(
                    sequence.token_ids[: sequence.num_computed_tokens], sequence.block_table, sequence.images
                )

    def note_prefill(self, one: Running) -> None:
        """Its token, or its score, is published just now."""
        claim = one.claim
        facts = {"choice": claim.job.choice, "tokens": one.sequence.num_computed_tokens, "attempt": claim.attempt}
        took_s = time.perf_counter() - one.began_s
        self.meters.phase(self.meters.prefill, took_s, "prefill", claim.taken.request, **facts)

    def note_offer(self, offer: Offer, took_s: float) -> None:
        """Its job is on the queue just now."""
        num_blocks = len(offer.handle.block_ids)
        self.meters.phase(self.meters.offer, took_s, "offer", offer.request, choice=offer.choice, blocks=num_blocks)
