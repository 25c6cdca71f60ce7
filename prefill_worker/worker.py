"""The prefill worker: take jobs, compute KV in chunks, publish the first token, offer the blocks, hand over.

`scheduler.py` decides, this file does; `handoff.py` is what follows a prompt's last chunk. It knows the broker, the
engine and the transfer; it must not know HTTP or text.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ctypes import CDLL
from typing import TypeVar

from broker.client import Broker
from broker.heartbeat import Heartbeat
from broker.intake import Claim, Intake
from broker.offer_watch import OfferWatch
from broker.rolling import Rolling
from broker.status_board import StatusBoard
from engine.block_space import BlockSpace
from engine.image_encoder import ImageEncoder
from engine.model_runner import ModelRunner, PrefillChunk
from engine.sampler import Sampled
from errors import RequestError, WorkerFailed
from kernels import cores
from kv_transfer.offers import Offers
from kv_transfer.seal import Seal
from kv_transfer.sender import KVSender
from messages.job import Phase, PrefillJob
from messages.token_event import FinishReason, TokenEvent
from messages.worker_status import WorkerState
from observability.catalogue import PREFIX_HIT, PREFIX_QUERIED
from prefill_worker.batch import Batch
from prefill_worker.handoff import Checksums, Computed, Handoff
from prefill_worker.pictures import Pictures
from prefill_worker.running import Running, running
from prefill_worker.scheduler import TAKE_COUNT, plan_step
from settings.loading import Settings
from telemetry import get_logger

log = get_logger()
ResultT = TypeVar("ResultT")

IDLE_BLOCK_MS = 200  # how long an idle loop waits for a job before it shows that it is alive
RATE_WINDOW_S = 10.0  # seconds of work over which the worker's rate is taken
OPENING_WAIT_S = 0.005  # how long a loop that has but grammars and images to wait for leaves its queue alone


class PrefillWorker:
    """One loop; `run` is the whole story."""

    def __init__(
        self,
        settings: Settings,
        broker: Broker,
        board: StatusBoard,
        heartbeat: Heartbeat,
        runner: ModelRunner,
        space: BlockSpace,
        sender: KVSender,
        seal: Seal | None = None,
        library: CDLL | None = None,
        encoder: ImageEncoder | None = None,
    ) -> None:
        """`library`: by which `runner` computes on cores that others may want; `encoder`: of a model that reads
        images."""
        self.pictures = None if encoder is None else Pictures(broker, encoder)
        self.settings, self.broker, self.board = settings, broker, board
        self.runner, self.space, self.library = runner, space, library
        self.offers = Offers(sender, space.free, seal or Seal())
        self.batch = Batch(space)
        self.watch = OfferWatch(
            broker,
            board.worker_id,
            self.offers,
            settings.kv_transfer.release_check_s,
            settings.queue.clock_tolerance_s,
            self.batch.blocks_freed.set,
        )
        self.meters = board.meters
        self.meters.num_offers = lambda: len(self.offers)
        self.intake = Intake(
            broker, broker.prefill_queue, heartbeat, board.worker_id, Phase.PREFILLING, settings.queue, self.meters
        )
        self.token_budget = settings.prefill.token_budget_on(runner.device_type)
        self.rate = Rolling(RATE_WINDOW_S)
        self.cancelled: set[tuple[str, int]] = set()
        self.stopping = asyncio.Event()
        self.compute_thread = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self.handoff = Handoff(
            broker, self.meters, self.intake, self.batch, self.offers, runner.eos_token_ids, self.compute_thread
        )

    async def run(self) -> None:
        """Until `stopping` is set; then give back what is unfinished."""
        async with asyncio.TaskGroup() as tasks:
            background = [
                tasks.create_task(self.watch.collect_releases()),
                tasks.create_task(self.watch.follow_sequences()),
                tasks.create_task(self.follow_cancels()),
            ]
            while not self.stopping.is_set():
                await self.admit()
                await self.drop_cancelled()
                await self.drop_late()
                await self.drop_refused()
                await self.step()
            await self.drain()
            for task in background:
                task.cancel()

    # -- one step ------------------------------------------------------------------------------------------------

    async def admit(self) -> None:
        """Take jobs until a step's worth of tokens is at hand, and start those for which there are blocks."""
        is_idle = not self.running and not self.waiting
        self.show()  # before it waits for a job: what the last step freed
        classes = self.batch.open_classes(self.token_budget) if self.may_offer_more and not self.is_isolating else []
        if classes:
            claims = await self.intake.next_claims(TAKE_COUNT, IDLE_BLOCK_MS if is_idle else 0, classes)
            for claim in claims:
                if self.intake.is_poison(claim):
                    await self.intake.fail(claim, f"{claim.attempt} workers failed while working on this request")
                elif claim.taken.request.kind == "score":
                    await self.score(claim)
                else:
                    self.waiting.append(self.opened(running(claim)))
            self.batch.sort_waiting()
        while self.waiting and len(self.running) < self.settings.prefill.max_running and self.start(self.waiting[0]):
            self.running.append(self.waiting.popleft())
        if not self.running and (self.waiting or not classes):
            # All that may be offered is: nothing to compute until a decode worker pulls.
            await self.wait_for_blocks()
        self.show()

    def show(self) -> None:
        """Where the loop is, for the heartbeat."""
        self.board.tick(free_blocks=self.space.num_free, num_running=len(self.running))

    def show_prompts(self) -> None:
        """How many are through in a step or two, for decode workers on our cores."""
        if self.library is not None:
            nearly_through = sum(one.remaining_tokens <= self.token_budget for one in self.batch.claimed)
            cores.show_prompts(self.library, nearly_through)

    async def step(self) -> None:
        """Compute one batch of chunks; publish and hand over the sequences that it completes."""
        suspects = [one for one in self.running if self.intake.is_suspect(one.claim)]
        batch = [one for one in suspects[:1] or self.running if one.is_open]
        if not batch and self.running:
            await self.wait_for_openings()
        plan = plan_step(
            [one.remaining_tokens for one in batch],
            self.token_budget,
            [one.claim.priority.rank for one in batch],
        )
        if not plan:
            return
        self.show_prompts()
        began = time.perf_counter()
        chunks = [PrefillChunk(batch[chunk.position].sequence, chunk.num_tokens) for chunk in plan]
        computed = await self.compute(chunks)
        done = [
            Computed(batch[chunk.position], token, checksums)
            for chunk, (token, checksums) in zip(plan, computed, strict=True)
            if token is not None
        ]
        finished = {id(each.one) for each in done}
        self.batch.running = [one for one in self.running if id(one) not in finished]
        if self.library is not None and not self.batch.claimed:
            cores.leave(self.library)  # before the milliseconds in which the stamp of this step is fresh
        await self.handoff.publish(done)
        took_s = time.perf_counter() - began
        self.note_work(sum(chunk.num_tokens for chunk in plan), took_s)
        self.meters.prefill_step.observe(took_s)

    async def compute(self, chunks: list[PrefillChunk]) -> list[tuple[Sampled | None, Checksums]]:
        """The next token of each prompt that these chunks complete, and what its blocks hold: summed next on that
        thread, while the event loop wakes up and publishes."""
        filled = [chunk.sequence.block_table if chunk.is_last else [] for chunk in chunks]  # before any is computed
        computing = self.on_compute_thread(lambda: self.runner.prefill(chunks))
        summing = [self.handoff.sum_blocks(block_ids) for block_ids in filled]
        return list(zip(await computing, summing, strict=True))

    async def score(self, claim: Claim[PrefillJob]) -> None:
        """A reward model's answer: one number, no tokens, no decode."""
        one = running(claim)
        while not (is_cancelled := claim.key in self.cancelled) and not self.start(one):
            await self.wait_for_blocks()
        if is_cancelled:
            await self.intake.lost(claim)
            return
        began = time.perf_counter()
        score = await self.on_compute_thread(lambda: self.runner.score(one.sequence))
        self.note_work(one.remaining_tokens, time.perf_counter() - began)
        self.batch.free(one)
        event = TokenEvent(finish_reason=FinishReason.STOP, score=score)
        (accepted,) = await self.broker.requests.append([claim.next_event(event, 0)])
        if accepted:
            self.handoff.note_prefill(one)
        await (self.intake.done(claim) if accepted else self.intake.lost(claim))

    # -- sequences and blocks ------------------------------------------------------------------------------------

    @property
    def running(self) -> list[Running]:
        """Who is computed, oldest first."""
        return self.batch.running

    @property
    def waiting(self) -> deque[Running]:
        """Who is claimed and has no blocks yet."""
        return self.batch.waiting

    @property
    def is_isolating(self) -> bool:
        """Whether a suspect is ours, which is computed alone: nothing is taken that it could take along."""
        return any(self.intake.is_suspect(one.claim) for one in self.batch.claimed)

    @property
    def may_offer_more(self) -> bool:
        """Whether decode workers keep up: what is prefilled long before its place in a batch is free may be in vain."""
        num_ahead = len(self.offers) + len(self.running) + len(self.waiting)
        is_pulled = len(self.offers) < self.settings.prefill.max_ahead
        return is_pulled and num_ahead + TAKE_COUNT <= self.settings.kv_transfer.max_offers

    def note_work(self, num_tokens: int, seconds: float) -> None:
        """So many prompt tokens were computed in one step of so long."""
        # What waits so long that the rate matters is computed in full steps. Small ones are mostly fixed costs, and
        # first ones above all: by their rate a burst that came after a single short prompt was refused.
        if 2 * num_tokens >= self.token_budget:
            self.rate.note(num_tokens, seconds)
        self.board.prefilled_tokens += num_tokens
        self.board.tokens_per_s = self.rate.value

    def start(self, one: Running) -> bool:
        """Give the sequence its blocks, those of a cached prefix first. False when there are not enough."""
        cached = [] if one.sequence.lists_prompt else self.space.match(one.sequence.token_ids, one.sequence.images)
        missing = one.sequence.num_blocks(self.settings.kv.block_size) - len(cached)
        if not self.space.can_allocate(missing):
            self.space.free(cached)
            return False
        one.sequence.block_table = [*cached, *self.space.allocate(missing)]
        one.sequence.num_computed_tokens = len(cached) * self.settings.kv.block_size
        one.sequence.num_cached_tokens = one.sequence.num_computed_tokens
        self.rate.note(one.sequence.num_computed_tokens, 0.0)  # the queue gets shorter by these too
        self.meters.count(PREFIX_QUERIED, one.sequence.num_tokens)
        self.meters.count(PREFIX_HIT, one.sequence.num_computed_tokens)
        if one.sequence.images_to_compute:
            one.opening = asyncio.create_task(self.open_images(one, one.opening))
        return True

    def opened(self, one: Running) -> Running:
        """Its grammar is compiled from now on, if it has one, beside the steps of the others."""
        if one.sequence.sampling.grammar is not None:
            one.opening = asyncio.wrap_future(self.runner.grammars.open(one.sequence))
        return one

    async def open_images(
        self, one: Running, opening: asyncio.Future[RequestError | None] | None
    ) -> RequestError | None:
        """What its grammar's opening results in, then its images', which are encoded beside the steps of the others."""
        error = None if opening is None else await opening
        if error is not None:
            return error
        if self.pictures is None:
            return WorkerFailed("a request with images came to a worker whose model reads none")
        return await self.pictures.open(one.claim.job.request_id, one.sequence)

    async def wait_for_openings(self) -> None:
        """Until one is over, or long enough for others to have come."""
        opening = [one.opening for one in self.running if one.opening is not None]
        await asyncio.wait(opening, timeout=OPENING_WAIT_S, return_when=asyncio.FIRST_COMPLETED)

    async def wait_for_blocks(self) -> None:
        """Until a block was freed, or long enough to show that the loop is alive."""
        if not await self.batch.wait_for_blocks(IDLE_BLOCK_MS / 1000):
            self.show()

    def on_compute_thread(self, work: Callable[[], ResultT]) -> asyncio.Future[ResultT]:
        """Run `work` on the one thread that computes, so that the event loop goes on."""
        return asyncio.get_running_loop().run_in_executor(self.compute_thread, work)

    # -- what others tell us -------------------------------------------------------------------------------------

    async def follow_cancels(self) -> None:
        """A finished sequence's offer is closed at once; its computation at the next step."""
        async for key in self.broker.cancels.listen():
            if self.offers.close_all_of(key):
                self.batch.blocks_freed.set()
            self.cancelled.add(key)  # its claim may be on its way here; `drop_cancelled` forgets what is not ours

    async def drop_cancelled(self) -> None:
        """Stop computing for sequences that have ended, or that others took over while we slept."""
        keys, self.cancelled = self.cancelled, set()
        for one in [one for one in self.batch.claimed if one.claim.key in keys or not self.intake.is_ours(one.claim)]:
            self.batch.drop(one)
            await self.intake.lost(one.claim)

    async def drop_late(self) -> None:
        """End the sequences whose time is over, whatever of them is computed."""
        for one in [one for one in self.batch.claimed if self.intake.is_late(one.claim)]:
            self.batch.drop(one)
            await self.intake.expire(one.claim)

    async def drop_refused(self) -> None:
        """End the sequences whose grammar cannot be followed, or whose images cannot be encoded."""
        for one in self.batch.claimed:
            error = one.opening.result() if one.opening is not None and one.opening.done() else None
            if error is not None:
                self.batch.drop(one)
                await self.intake.fail(one.claim, str(error), error.status)

    async def drain(self) -> None:
        """Hand unfinished jobs back to the queue, then wait for open offers to be pulled."""
        self.board.state = WorkerState.DRAINING
        for one in self.batch.claimed:
            job = one.claim.job
            again = PrefillJob(job.request_id, job.choice, job.hop + 1, job.attempt, len(one.claim.taken.events))
            await self.intake.hand_over(one.claim, again, Phase.PREFILL_QUEUED)
            self.batch.free(one)
        deadline = asyncio.get_running_loop().time() + self.settings.queue.drain_s
        while len(self.offers) and asyncio.get_running_loop().time() < deadline:
            await self.wait_for_blocks()
