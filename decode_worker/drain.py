"""How a stopping worker hands its sequences on: their KV to other decode workers, or their tokens to prefill.

`drain_plan.py` decides, this file does. An offered sequence is nobody's until another worker takes its job from the
decode queue; its blocks stay ours until that one has pulled them. Knows the broker and the transfer; knows no model.
"""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from broker.client import Broker
from broker.intake import Intake
from broker.offer_watch import OfferWatch
from broker.status_board import StatusBoard
from decode_worker.drain_plan import plan_drain, recompute_tokens_per_s, takers_of
from decode_worker.running import Running
from engine.block_space import BlockSpace
from kv_transfer.offers import Offer, Offers
from messages.job import DecodeJob, Phase
from messages.worker_status import WorkerStatus
from settings.loading import Settings
from telemetry import get_logger

log = get_logger()

CHECK_S = 0.2  # how often it looks whether anybody is still there to pull


class Drain:
    """One per worker. `offers` are those of its pool; without them everything goes to prefill."""

    def __init__(
        self,
        settings: Settings,
        broker: Broker,
        board: StatusBoard,
        intake: Intake[DecodeJob],
        space: BlockSpace,
        offers: Offers | None,
        compute_thread: ThreadPoolExecutor,
    ) -> None:
        self._settings, self._broker, self._board, self._intake = settings, broker, board, intake
        self._space, self._offers, self._thread = space, offers, compute_thread
        self._pulled = asyncio.Event()

    async def run(self, leaving: Sequence[Running], pull_tokens_per_s: float) -> None:
        """Each continues from its last published token. Then until what is offered is pulled, at most
        `queue.drain_s`. `leaving`: who is most urgent first."""
        give_up = time.monotonic() + self._settings.queue.drain_s
        if self._offers is None or not leaving:
            for one in leaving:
                await self._recompute(one)
            return
        workers = await self._broker.registry.live()
        plan = plan_drain(
            [len(one.sequence.block_table) for one in leaving],
            self._takers_among(workers),
            recompute_tokens_per_s(workers),
            pull_tokens_per_s,
        )
        log.info("sequences_leaving", offered=len(plan.offer), to_prefill=len(plan.recompute))
        for position in plan.recompute:  # whose way is the longer one
            await self._recompute(leaving[position])
        handed_over = [
            (leaving[position], await self._offer(self._offers, leaving[position])) for position in plan.offer
        ]
        await self._wait_until_pulled(self._offers, give_up)
        for one, offer in handed_over:
            if self._offers.is_open(offer):
                # Whoever has taken it by now finds its offer gone, and sends it to prefill.
                job = one.prefill_job(offer.hop + 1)
                is_back = await self._intake.take_back(one.claim, job, Phase.PREFILL_QUEUED)
                log.info("offer_not_pulled", request_id=job.request_id, choice=job.choice, is_back=is_back)
                self._offers.close(offer.transfer_id)

    def forget(self, key: tuple[str, int]) -> None:
        """The sequence has ended: its offer, if it has one, is closed."""
        if self._offers is not None and self._offers.close_all_of(key):
            self._pulled.set()

    async def _recompute(self, one: Running) -> None:
        await self._intake.hand_over(one.claim, one.prefill_job(one.claim.job.hop + 1), Phase.PREFILL_QUEUED)
        self._space.free(one.sequence.block_table)
        one.sequence.block_table = []

    async def _offer(self, offers: Offers, one: Running) -> Offer:
        """Offer the sequence's blocks and put its next DecodeJob. The offer is closed if the sequence is not ours."""
        job, sequence = one.claim.job, one.sequence
        # A block may be there for a token whose step did not come.
        num_blocks = -(-sequence.num_computed_tokens // self._space.block_size)
        block_ids, spare = sequence.block_table[:num_blocks], sequence.block_table[num_blocks:]
        sequence.block_table = []
        self._space.free(spare)
        checksums = asyncio.get_running_loop().run_in_executor(self._thread, offers.checksums, block_ids)
        hop = job.hop + 1
        request = one.claim.taken.request
        offer = offers.open(request, job.choice, hop, block_ids, sequence.num_computed_tokens)
        again = DecodeJob(job.request_id, job.choice, hop, offer.handle, one.attempt)
        is_handed_over, _ = await asyncio.gather(
            self._intake.hand_over(one.claim, again, Phase.DECODE_QUEUED), offers.put_checksums(offer, checksums)
        )
        if not is_handed_over:
            offers.close(offer.transfer_id)
        return offer

    async def _wait_until_pulled(self, offers: Offers, give_up: float) -> None:
        """Or until nobody is there to pull, or until `give_up` (time.monotonic())."""
        watch = OfferWatch(
            self._broker,
            self._board.worker_id,
            offers,
            self._settings.kv_transfer.release_check_s,
            self._settings.queue.clock_tolerance_s,
            self._pulled.set,
        )
        async with asyncio.TaskGroup() as tasks:
            watching = [tasks.create_task(watch.collect_releases()), tasks.create_task(watch.follow_sequences())]
            while self._takers_among(await self._broker.registry.live()) and len(offers) and time.monotonic() < give_up:
                self._pulled.clear()
                try:
                    await asyncio.wait_for(self._pulled.wait(), CHECK_S)
                except TimeoutError:
                    pass
            for task in watching:
                task.cancel()

    def _takers_among(self, workers: Sequence[WorkerStatus]) -> list[WorkerStatus]:
        export = self._board.export
        return [] if export is None else takers_of(workers, self._board.worker_id, export.host_id)
