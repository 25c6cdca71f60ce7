"""What becomes of a prompt that is computed: its first token is published, its blocks are offered, its job handed over.

The blocks stay ours until a decode worker has pulled them. Knows the broker and the transfer; knows no model.
"""

import asyncio
import time
from collections.abc import Container
from concurrent.futures import Executor

from broker.client import Broker
from broker.intake import Intake
from engine.continuation import event_of
from engine.sampler import Sampled
from kv_transfer.offers import Offers
from messages.job import DecodeJob, Phase, PrefillJob
from observability.catalogue import FENCED
from observability.worker_meters import WorkerMeters
from prefill_worker.batch import Batch
from prefill_worker.running import Running


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

    async def publish(self, done: list[tuple[Running, Sampled]]) -> None:
        """First tokens out at once; then the KV is offered and the sequence goes to decode."""
        if not done:
            return
        events = [event_of(one.sequence, token, self.eos_token_ids) for one, token in done]
        appends = [
            one.claim.next_event(event, one.sequence.num_output_tokens)
            for (one, _), event in zip(done, events, strict=True)
        ]
        # The sums are taken while the first tokens, and then the offers, are on their way: nobody waits for them.
        summing = [
            self.sum_blocks(one.sequence.block_table) if event.finish_reason is None else None
            for (one, _), event in zip(done, events, strict=True)
        ]
        began_s = time.perf_counter()
        accepted = await self.broker.requests.append(appends)
        published_s = time.perf_counter()
        self.meters.publish.observe(published_s - began_s)
        for (one, token), ok, sums in zip(done, accepted, summing, strict=True):
            if ok:
                self.note_prefill(one, published_s)
            if not token.error:  # what gave no finite logits is not to be reused
                self.batch.space.remember(
                    one.sequence.token_ids[: one.sequence.num_computed_tokens],
                    one.sequence.block_table,
                    one.sequence.images,
                )
            if not ok:
                self.meters.count(FENCED)
                self.batch.free(one)
                await self.intake.lost(one.claim)
            elif sums is None:
                self.batch.free(one)
                await self.intake.done(one.claim)
            else:
                await self.offer(one, sums, published_s)

    def sum_blocks(self, block_ids: list[int]) -> asyncio.Future[tuple[int, ...]]:
        """Their checksums, before the next step is computed."""
        return asyncio.get_running_loop().run_in_executor(self.compute_thread, self.offers.checksums, block_ids)

    async def offer(self, one: Running, checksums: asyncio.Future[tuple[int, ...]], published_s: float) -> None:
        """Offer the blocks and put the DecodeJob; only then is the PrefillJob acknowledged.

        `published_s`: when its token was (time.perf_counter()).
        """
        job = one.claim.job
        offer = self.offers.open(
            one.claim.taken.request,
            job.choice,
            job.hop + 1,
            one.sequence.block_table,
            one.sequence.num_computed_tokens,
        )
        # Without our own deliveries: what has been prefilled did not die of it.
        decode_job = DecodeJob(job.request_id, job.choice, job.hop + 1, offer.handle, job.attempt)
        is_handed_over, _ = await asyncio.gather(
            self.intake.hand_over(one.claim, decode_job, Phase.DECODE_QUEUED),
            self.offers.put_checksums(offer, checksums),
        )
        if not is_handed_over:
            self.offers.close(offer.transfer_id)
            self.batch.blocks_freed.set()
            return
        took_s = time.perf_counter() - published_s
        num_blocks = len(offer.handle.block_ids)
        self.meters.phase(self.meters.offer, took_s, "offer", offer.request, choice=job.choice, blocks=num_blocks)

    def note_prefill(self, one: Running, now_s: float) -> None:
        """Its token, or its score, is published."""
        claim = one.claim
        facts = {"choice": claim.job.choice, "tokens": one.sequence.num_computed_tokens, "attempt": claim.attempt}
        self.meters.phase(self.meters.prefill, now_s - one.began_s, "prefill", claim.taken.request, **facts)
