"""The decode worker: take jobs when there is room, pull their KV, and decode everybody one token a step.

`scheduler.py` decides, this file does. Two loops share the event loop: the intake takes and pulls, `run` steps; what
the intake has pulled joins the batch at the next step, so a pull never stops a running stream. It knows the broker, the
engine and the transfer; it must not know HTTP or text.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TypeVar

from broker.client import Broker
from broker.heartbeat import Heartbeat
from broker.intake import Claim, Intake
from broker.rolling import Rolling
from broker.status_board import StatusBoard
from decode_worker.drain import Drain
from decode_worker.pool import open_pool
from decode_worker.running import Running
from decode_worker.scheduler import Demand, can_admit, expected_stay_s, plan_step
from decode_worker.shard_receiver import ShardReceiver, start_receiver
from engine.block_growth import growth_of
from engine.block_space import BlockSpace
from engine.continuation import event_of, sequence_of
from engine.kv_pool import KVPool
from engine.loading import LoadedModel, decode_graphs
from engine.model_runner import ModelRunner, alone
from engine.sampler import Sampled
from engine.sequence import Sequence
from engine.threads import on_passing_thread
from kv_transfer.offers import Offers
from kv_transfer.receiver import KVReceiver
from kv_transfer.seal import NotAuthentic, Seal, open_seal
from kv_transfer.segment import sweep_segments
from kv_transfer.sender import KVSender
from messages import (
    DecodeJob,
    KVHandle,
    KVTransferFailed,
    Phase,
    PoolExport,
    PrefillJob,
    Release,
    WorkerState,
)
from settings import Settings
from telemetry import get_logger

log = get_logger()
ResultT = TypeVar("ResultT")

MAX_EXPORTS = 1024  # owners that are remembered
STEP_WINDOW = 32  # steps over which the time of one is taken
PULL_WINDOW_S = 1.0  # seconds of pulls over which their rate is taken
SEQUENCE_WINDOW = 32  # sequences over which the share of its max_new_tokens that one makes is taken
IDLE_WAIT_S = 0.2  # how long an idle loop waits before it shows that it is alive


class DecodeWorker:
    """Two loops, `run` and `take_in`; one compute thread; one pulling thread."""

    def __init__(
        self,
        settings: Settings,
        broker: Broker,
        board: StatusBoard,
        heartbeat: Heartbeat,
        runner: ModelRunner,
        pool: KVPool,
        space: BlockSpace,
        receiver: KVReceiver | ShardReceiver,
        seal: Seal | None = None,
        sender: KVSender | None = None,
    ) -> None:
        """`sender`: of the pool where it is exported; without it nothing is offered when the worker stops."""
        self.settings, self.broker, self.board, self.heartbeat = settings, broker, board, heartbeat
        self.runner, self.pool, self.space, self.receiver = runner, pool, space, receiver
        self.seal = seal or Seal()
        self.block_size = settings.kv.block_size
        self.intake = Intake(broker, broker.decode_queue, heartbeat, board.worker_id, Phase.DECODING, settings.queue)
        self.running: list[Running] = []  # oldest first
        self.joining: list[Running] = []  # pulled, in from the next step
        self.num_pulling = 0
        self.pull_rate = Rolling(PULL_WINDOW_S)  # tokens per second
        self.pace = Rolling(STEP_WINDOW)  # seconds per step
        self.used_share = Rolling(SEQUENCE_WINDOW)
        self.pulling_since: float | None = None  # time.monotonic()
        self.exports: dict[tuple[str, int], PoolExport] = {}  # by pool and epoch
        self.cancelled: set[tuple[str, int]] = set()
        self.work_came = asyncio.Event()
        self.room_came = asyncio.Event()
        self.stopping = asyncio.Event()
        self.compute_thread = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self.pull_thread = ThreadPoolExecutor(1, thread_name_prefix="pull")
        self.can_offer = sender is not None
        offers = None if sender is None else Offers(sender, space.free, self.seal)
        self.drain = Drain(settings, broker, board, self.intake, space, offers, self.compute_thread)

    async def run(self) -> None:
        """Until `stopping` is set; then hand every running sequence on."""
        async with asyncio.TaskGroup() as tasks:
            taking_in = tasks.create_task(self.take_in())
            following = tasks.create_task(self.follow_cancels())
            # The taking-in ends by itself: a read or a pull that is cut off leaves a job to the end of its lease.
            while not taking_in.done():
                if not self.running and not self.joining:
                    self.show()  # what the last step freed
                    await self.wait(self.work_came)
                await self.step()
            await self.leave()
            following.cancel()

    # -- one step ------------------------------------------------------------------------------------------------

    async def step(self) -> None:
        """Everybody who fits decodes one token; it is published; who has finished leaves."""
        self.running += self.joining
        self.joining = []
        await self.drop_cancelled()
        await self.drop_late()
        self.show()
        began = time.perf_counter()
        batch = await self.make_room()
        # Should the step kill us, it takes none of the others along: they have tokens since they came, it has none.
        batch = [one for one in batch if one.is_suspect] or batch
        if not batch:
            return
        allowed = [one.sequence.sampling.max_new_tokens for one in batch]
        sequences = [one.sequence for one in batch]
        sampled = await self.on_thread(self.compute_thread, lambda: self.runner.decode(sequences))
        await self.publish(batch, sampled)
        self.pace.note(time.perf_counter() - began, 1)
        self.board.sequence_s = expected_stay_s(self.pace.value, allowed, self.used_share.value)

    def show(self) -> None:
        """Where the loop is, for the heartbeat. While a pull is stuck it shows nothing, as if the loop were."""
        if not self.is_pull_stuck:
            self.board.tick(free_blocks=self.space.num_free, num_running=len(self.running))

    async def make_room(self) -> list[Running]:
        """Allocate what the step needs, preempting if blocks run out. The batch that fits."""
        demands = [
            Demand(len(one.sequence.block_table), one.sequence.num_blocks(self.block_size), one.claim.priority.rank)
            for one in self.running
        ]
        plan = plan_step(demands, self.space.num_free)
        for position in plan.preempt:
            await self.preempt(self.running[position])
        self.running = [self.running[position] for position in plan.decode]
        for one in self.running:
            missing = one.sequence.num_blocks(self.block_size) - len(one.sequence.block_table)
            one.sequence.block_table += self.space.allocate(missing)
        return self.running

    async def publish(self, batch: list[Running], sampled: list[Sampled]) -> None:
        """One round trip for the whole step; a refusal means that the sequence is no longer ours."""
        events = [
            event_of(one.sequence, token, self.runner.eos_token_ids) for one, token in zip(batch, sampled, strict=True)
        ]
        appends = [
            one.claim.next_event(event, one.sequence.num_output_tokens)
            for one, event in zip(batch, events, strict=True)
        ]
        accepted = await self.broker.requests.append(appends)
        for one, token, event, ok in zip(batch, sampled, events, accepted, strict=True):
            if not ok:
                self.retire(one)
                await self.intake.lost(one.claim)
            elif event.finish_reason is not None:
                self.retire(one)
                await self.intake.done(one.claim)
            else:
                one.sequence.token_ids.append(token.token_id)
                if one.is_suspect:
                    one.is_suspect = False
                    self.room_came.set()

    async def preempt(self, one: Running) -> None:
        """Blocks ran out: the sequence gives its own back and is recomputed from its tokens."""
        log.info("sequence_preempted", request_id=one.claim.job.request_id, num_tokens=one.sequence.num_tokens)
        if one.sequence.num_blocks(self.block_size) > self.space.num_blocks:
            await self.intake.fail(one.claim, f"the sequence outgrew the KV pool of {self.space.num_blocks} blocks")
        else:
            await self.send_back(one.claim, one.attempt)
        self.free(one.sequence)

    # -- taking in -----------------------------------------------------------------------------------------------

    async def take_in(self) -> None:
        """Take jobs while there are slots, one pull at a time. Nothing is taken that could not join soon.

        Until `stopping` is set; a job that comes with the last read is handed on.
        """
        while not self.stopping.is_set():
            # Nothing is on its way here now: what was cancelled and is not here was somebody else's.
            self.cancelled.intersection_update(one.claim.key for one in (*self.running, *self.joining))
            room = self.settings.decode.max_running - self.num_claimed
            is_isolating = any(one.is_suspect for one in (*self.running, *self.joining))
            if is_isolating or room <= 0 or not can_admit(1, self.space.num_free, self.num_claimed):
                await self.wait(self.room_came)
                continue
            for claim in await self.intake.next_claims(1, int(IDLE_WAIT_S * 1000)):
                self.num_pulling += 1
                try:
                    await self.admit(claim)
                finally:
                    self.num_pulling -= 1

    async def admit(self, claim: Claim[DecodeJob]) -> None:
        """Get the sequence's blocks and pull its KV into them; without its KV it goes back to prefill."""
        job, taken = claim.job, claim.taken
        try:
            self.check_handle(job)
        except KVTransferFailed as error:
            # Nobody is known to release it to; and where every owner's secret is another than ours, this has to end.
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
        while not can_admit(needed, self.space.num_free, self.num_here):
            if claim.key in self.cancelled or self.stopping.is_set():
                break
            if self.intake.is_late(claim):
                await self.release(job)
                await self.intake.expire(claim)
                return
            await self.wait(self.room_came)
        if claim.key in self.cancelled:
            self.cancelled.discard(claim.key)
            await self.release(job)
            await self.intake.lost(claim)
            return
        is_room_here = can_admit(needed, self.space.num_free, self.num_here)
        if self.stopping.is_set() and not (self.can_offer and is_room_here):
            await self.release(job)
            await self.send_back(claim, attempt=claim.attempt)
            return
        sequence.block_table = self.space.allocate(needed)
        started = time.perf_counter()
        export = await self.export_of(job.kv_handle)
        self.pulling_since = time.monotonic()
        try:
            await self.on_thread(
                self.pull_thread,
                lambda: self.receiver.pull(job.kv_handle, self.pool.tensor, sequence.block_table, export),
            )
        except KVTransferFailed as error:
            log.warning("kv_pull_failed", request_id=job.request_id, owner=job.kv_handle.worker_id, reason=str(error))
            self.free(sequence)
            await self.release(job)
            await self.send_back(claim, attempt=claim.attempt)
            return
        finally:
            self.pulling_since = None
        took_s = time.perf_counter() - started
        self.pull_rate.note(job.kv_handle.num_tokens, took_s)
        log.debug("kv_pulled", request_id=job.request_id, blocks=needed, ms=round(took_s * 1000, 2))
        sequence.num_computed_tokens = job.kv_handle.num_tokens
        await self.release(job)
        self.joining.append(Running(claim, sequence, is_suspect=self.intake.is_suspect(claim)))
        self.work_came.set()

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
        again = PrefillJob(job.request_id, job.choice, job.hop + 1, attempt)
        await self.intake.hand_over(claim, again, Phase.PREFILL_QUEUED)

    async def export_of(self, handle: KVHandle) -> PoolExport | None:
        """What the handle's owner says of its pool; asked once, since it never changes. None when it is gone."""
        key = (handle.pool, handle.pool_epoch)
        if key not in self.exports:
            status = await self.broker.registry.find(handle.worker_id)
            if status is None or status.export is None:
                return None
            try:
                self.seal.check_export(status.export)
            except NotAuthentic as error:
                log.warning("kv_export_refused", owner=handle.worker_id, reason=str(error))
                return None
            self.exports[key] = status.export
            if len(self.exports) > MAX_EXPORTS:
                del self.exports[next(iter(self.exports))]
        return self.exports[key]

    # -- sequences and blocks ------------------------------------------------------------------------------------

    @property
    def num_claimed(self) -> int:
        """Sequences that are ours: running, pulled or being pulled."""
        return self.num_here + self.num_pulling

    @property
    def num_here(self) -> int:
        """Sequences whose KV is here: running or pulled."""
        return len(self.running) + len(self.joining)

    @property
    def is_pull_stuck(self) -> bool:
        """Whether a pull takes longer than any transport may: the loop comes round, but nothing new ever joins it."""
        since = self.pulling_since
        return since is not None and time.monotonic() - since > self.settings.queue.stall_s

    def retire(self, one: Running) -> None:
        """The sequence leaves the batch."""
        self.running = [other for other in self.running if other is not one]
        self.used_share.note(one.sequence.num_output_tokens / one.sequence.sampling.max_new_tokens, 1)
        self.free(one.sequence)

    def free(self, sequence: Sequence) -> None:
        """Give the sequence's blocks back."""
        self.space.free(sequence.block_table)
        sequence.block_table = []
        self.room_came.set()

    async def wait(self, event: asyncio.Event) -> None:
        """Until `event`, or long enough to show that the loop is alive."""
        event.clear()
        try:
            await asyncio.wait_for(event.wait(), IDLE_WAIT_S)
        except TimeoutError:
            pass

    async def on_thread(self, thread: ThreadPoolExecutor, work: Callable[[], ResultT]) -> ResultT:
        """Run `work` on `thread`, so that the event loop goes on."""
        return await asyncio.get_running_loop().run_in_executor(thread, work)

    # -- what others tell us -------------------------------------------------------------------------------------

    async def follow_cancels(self) -> None:
        """A sequence that was ended from outside leaves at the next step."""
        async for key in self.broker.cancels.listen():
            self.drain.forget(key)
            self.cancelled.add(key)
            self.work_came.set()
            self.room_came.set()

    async def drop_cancelled(self) -> None:
        """Stop decoding sequences that have ended, or that others took over while we slept."""
        mine = [one for one in self.running if one.claim.key in self.cancelled or not self.intake.is_ours(one.claim)]
        self.cancelled.difference_update(one.claim.key for one in mine)  # the rest may be on its way here: `take_in`
        for one in mine:
            self.retire(one)
            await self.intake.lost(one.claim)

    async def drop_late(self) -> None:
        """End the sequences whose time is over."""
        for one in [one for one in self.running if self.intake.is_late(one.claim)]:
            self.retire(one)
            await self.intake.expire(one.claim)

    async def leave(self) -> None:
        """Hand every sequence on: it continues on another worker from its last published token."""
        self.board.state = WorkerState.DRAINING
        self.heartbeat.wake()  # so that a worker that stops at the same time does not count on us
        leaving = sorted((*self.running, *self.joining), key=lambda one: one.claim.priority.rank)
        self.running, self.joining = [], []
        await self.drain.run(leaving, self.pull_rate.value)


async def work(
    settings: Settings,
    board: StatusBoard,
    broker: Broker,
    heartbeat: Heartbeat,
    loaded: LoadedModel,
    listen: Callable[[], asyncio.Event],
) -> None:
    """Serve with the loaded model until the event of `listen` is set, which SIGTERM does. Raises StartupError."""
    num_blocks, model, ranks = loaded.num_blocks, loaded.model, loaded.ranks
    seal = open_seal(settings.kv_transfer, log.warning)
    with ExitStack() as stack:
        pool, exported = await on_passing_thread(open_pool, settings, board.worker_id, loaded)
        if exported is not None:
            stack.enter_context(exported)
            board.export = seal.seal_export(exported.export)
        receiver = await on_passing_thread(start_receiver, settings.kv_transfer, board.worker_id, loaded)
        stack.callback(receiver.close)
        if ranks is not None:
            ranks.serve(num_blocks)
        board.read_transfers = lambda: receiver.counts
        # A worker killed beside us leaves its pool in /dev/shm, and our mapping keeps the memory.
        heartbeat.on_tick += [sweep_segments, receiver.prune]
        graphs = await on_passing_thread(decode_graphs, settings, model, pool, board.say)
        runner = ModelRunner(model, pool, ranks.step if ranks else alone, graphs)
        sender = None if exported is None else exported.sender
        growth = None
        if sender is not None:
            growth = growth_of(settings.kv, pool.layout.block_bytes, num_blocks, sender.reserve, sender.num_reservable)
        space = BlockSpace(num_blocks, settings.kv.block_size, prefix_cache=False, growth=growth)
        worker = DecodeWorker(settings, broker, board, heartbeat, runner, pool, space, receiver, seal, sender)
        worker.stopping = listen()
        board.max_running = settings.decode.max_running
        board.ready(model_hash=model.model_hash, block_size=settings.kv.block_size, num_blocks=num_blocks)
        log.info("worker_ready", num_blocks=num_blocks, capacity_tokens=num_blocks * settings.kv.block_size)
        await worker.run()
