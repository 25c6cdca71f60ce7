"""The decode worker: everybody in the batch decodes one token a step, which is published, until all have ended.

`scheduler.py` decides, this file does. Two loops share the event loop: `admission.py` takes jobs and pulls their KV,
`run` steps. The tokens of a step are published while the next one is computed, of one step at a time. It knows the
broker and the engine; it must not know HTTP, text, nor how KV comes here.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from ctypes import CDLL

from broker.client import Broker
from broker.heartbeat import Heartbeat
from broker.intake import Intake
from broker.local_intake import LocalIntake
from broker.rolling import Rolling
from broker.status_board import StatusBoard
from decode_worker.admission import Admission
from decode_worker.batch import Batch, wait
from decode_worker.courtesy import Courtesy
from decode_worker.drain import Drain
from decode_worker.local_prefill import LocalPrefill
from decode_worker.output import Output, take_over
from decode_worker.pace_probe import measure_pace
from decode_worker.pool import open_pool
from decode_worker.running import Running
from decode_worker.scheduler import Demand, StepPlan, expected_stay_s, plan_step
from decode_worker.shard_receiver import ShardReceiver, start_receiver
from decode_worker.step_turns import StepTurns
from engine.block_growth import growth_of
from engine.block_space import BlockSpace
from engine.kv_pool import KVPool
from engine.loading import LoadedModel, decode_graphs
from engine.model_runner import ModelRunner, alone
from engine.threads import on_passing_thread
from kernels import cpu_build
from kv_transfer.offers import Offers
from kv_transfer.receiver import KVReceiver
from kv_transfer.seal import Seal, open_seal
from kv_transfer.segment import sweep_segments
from kv_transfer.sender import KVSender
from messages import Phase, WorkerState
from observability.catalogue import FENCED, PREEMPTED
from settings import Settings
from telemetry import get_logger

log = get_logger()

STEP_WINDOW = 32  # steps over which the time of one is taken
HANDOFF_TRIPS = 4  # round trips to Redis of a hand-off: hand over, be told, take, release
SEQUENCE_WINDOW = 32  # sequences over which the share of its max_new_tokens that one makes is taken


class DecodeWorker:
    """The loop of the steps, and the one thread that computes them."""

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
        turns: StepTurns | None = None,
        library: CDLL | None = None,
    ) -> None:
        """`sender`: of the pool where it is exported; without it nothing is offered when the worker stops. `turns`:
        by which `receiver` waits. `library`: by which `runner` computes on cores that others may want."""
        self.turns = turns or StepTurns()
        self.settings, self.broker, self.board, self.heartbeat = settings, broker, board, heartbeat
        self.runner, self.space = runner, space
        self.block_size = settings.kv.block_size
        self.meters = board.meters
        self.intake = Intake(
            broker, broker.decode_queue, heartbeat, board.worker_id, Phase.DECODING, settings.queue, self.meters
        )
        self.unpublished: list[Output] = []  # of the last step
        self.prepared: list[Running] | None = None  # who makes the next step, if nobody joins
        self.pace = Rolling(STEP_WINDOW)  # seconds per step
        self.last_step_s = 0.0
        self.courtesy = Courtesy(settings.decode, library)
        self.used_share = Rolling(SEQUENCE_WINDOW)
        self.stopping = asyncio.Event()
        self.compute_thread = ThreadPoolExecutor(1, thread_name_prefix="compute")
        seal = seal or Seal()
        self.batch = Batch(space)
        self.admission = Admission(
            settings,
            broker,
            self.intake,
            self.batch,
            pool.tensor,
            receiver,
            seal,
            open_grammar=lambda sequence: self.runner.grammars.open(sequence),
            can_offer=sender is not None,
        )
        self.local = LocalPrefill(
            settings,
            broker,
            board,
            LocalIntake(broker, heartbeat, board.worker_id, settings.queue, self.meters),
            self.batch,
            runner,
            self.compute_thread,
            read_step_s=lambda: self.pace.value,
            read_way=lambda: (HANDOFF_TRIPS * self.admission.round_trip_s.value, self.admission.pull_rate.value),
        )
        offers = None if sender is None else Offers(sender, space.free, seal)
        if offers is not None:
            self.meters.num_offers = lambda: len(offers)
        self.drain = Drain(settings, broker, board, self.intake, space, offers, self.compute_thread)

    async def run(self) -> None:
        """Until `stopping` is set; then hand every running sequence on."""
        async with asyncio.TaskGroup() as tasks:
            taking_in = tasks.create_task(self.admission.run(self.stopping))
            prefilling = tasks.create_task(self.local.run(self.stopping))
            following = tasks.create_task(self.follow_cancels())
            # The taking-in ends by itself: a read or a pull that is cut off leaves a job to the end of its lease.
            while not taking_in.done():
                if not self.batch.num_here:
                    await self.publish()  # of those who have just ended
                if not self.batch.num_here:
                    self.turns.rest()
                    self.show()  # what the last step freed
                    await wait(self.batch.work_came)
                if self.running and self.courtesy.wants_rest():
                    self.prepared = None  # somebody may leave meanwhile
                    await self.settle()
                    await self.courtesy.rest(self.last_step_s)
                await self.step()
                if self.batch.prefilling:
                    self.prepared = None  # somebody may leave meanwhile
                    self.show()
                    await self.settle()
                    await self.local.step()
            self.turns.rest()
            self.batch.room_came.set()
            await prefilling
            await self.local.leave()
            await self.settle()
            await self.leave()
            following.cancel()

    # -- one step ------------------------------------------------------------------------------------------------

    async def step(self) -> None:
        """Everybody who fits decodes one token, while those of the step before are published. Who has got its last one
        leaves."""
        began = time.perf_counter()
        batch = self.prepared if self.prepared is not None and not self.batch.joining else await self.next_batch()
        if not batch:
            await self.settle()
            return
        sequences = [one.sequence for one in batch]
        self.turns.begin_step()
        computing = asyncio.get_running_loop().run_in_executor(self.compute_thread, self.runner.decode, sequences)
        self.show()
        refused = await self.publish()
        allowed = [one.sequence.sampling.max_new_tokens for one in batch]
        self.board.sequence_s = expected_stay_s(self.pace.value, allowed, self.used_share.value)
        can_go_on = not refused and self.prepare()
        sampled = await computing
        self.retire(refused)  # not sooner: the step wrote into their blocks
        outputs = take_over(batch, sampled, self.runner.eos_token_ids)
        self.unpublished = [output for output in outputs if output.one not in refused]
        for output in self.unpublished:
            if output.is_last and not output.append.event.error:  # its conversation may go on
                sequence = output.one.sequence
                self.space.remember(
                    sequence.token_ids[: sequence.num_computed_tokens], sequence.block_table, sequence.images
                )
        self.retire(output.one for output in self.unpublished if output.is_last)
        self.prepared = self.running if can_go_on else None
        self.last_step_s = time.perf_counter() - began
        self.pace.note(self.last_step_s, 1)
        self.meters.decode_step.observe(self.last_step_s)
        self.meters.batch.observe(len(batch))

    def show(self) -> None:
        """Where the loop is, for the heartbeat. While a pull is stuck it shows nothing, as if the loop were."""
        if not self.admission.is_pull_stuck:
            self.board.tick(free_blocks=self.space.num_free, num_running=len(self.running))

    def prepare(self) -> bool:
        """While a step computes: whether all of its batch that goes on can make the next one, with blocks for it. Then
        that one has not to wait for anything but this one's tokens."""
        if self.leaving() or any(one.is_suspect for one in self.running):
            return False
        needs = [
            -(-(one.sequence.num_tokens + 1) // self.block_size) - len(one.sequence.block_table) for one in self.running
        ]
        if sum(needs) > self.space.num_free:
            return False
        for one, missing in zip(self.running, needs, strict=True):
            if missing:
                one.sequence.block_table += self.space.allocate(missing)
        return True

    async def next_batch(self) -> list[Running]:
        """Who decodes now, with blocks for it; who cannot, or must not, leaves."""
        self.prepared = None  # else who leaves now could be in the step after this one
        self.batch.take_joined()
        leaving, plan = self.leaving(), self.plan()
        if leaving or plan.preempt or any(one.is_suspect for one in self.running):
            # Who goes elsewhere takes along what its stream has, and whoever dies of a suspect has told all it had.
            await self.settle()
            leaving = self.leaving()
            await self.see_off(leaving)
            while (plan := self.plan()).preempt:  # once more where others share their blocks, which then are not free
                if self.batch.prefilling:
                    await self.local.leave()  # who has not begun to speak gives way first
                    continue
                for position in plan.preempt:
                    await self.preempt(self.running[position])
                self.batch.running = [self.running[position] for position in plan.decode]
        for one in self.running:
            missing = one.sequence.num_blocks(self.block_size) - len(one.sequence.block_table)
            if missing:
                one.sequence.block_table += self.space.allocate(missing)
        # Should the step kill us, it takes none of the others along: they have tokens since they came, it has none.
        return [one for one in self.running if one.is_suspect] or self.running

    def plan(self) -> StepPlan:
        """Who of those that run can get the blocks that the step needs."""
        demands = [
            Demand(len(one.sequence.block_table), one.sequence.num_blocks(self.block_size), one.claim.priority.rank)
            for one in self.running
        ]
        return plan_step(demands, self.space.num_free)

    async def publish(self) -> list[Running]:
        """What the last step gave, in one round trip, and one more for those who have ended. Who was refused: the
        sequence is no longer ours."""
        outputs = self.unpublished
        if not outputs:
            return []
        began_s = time.perf_counter()
        accepted = await self.broker.requests.append([output.append for output in outputs])
        published_s = time.perf_counter()
        self.meters.publish.observe(published_s - began_s)
        refused = [output.one for output, ok in zip(outputs, accepted, strict=True) if not ok]
        if refused:
            self.meters.count(FENCED, len(refused))
        for one in refused:
            self.note_departure(one, "lost")
            await self.intake.lost(one.claim)
        ended = [output.one for output, ok in zip(outputs, accepted, strict=True) if ok and output.is_last]
        if ended:
            for one in ended:
                self.note_end(one, published_s)
            await self.intake.done(*(one.claim for one in ended))
        for output in outputs:
            if output.one.is_suspect and output.one not in refused:
                output.one.is_suspect = False
                self.batch.room_came.set()
        self.unpublished = []
        return refused

    def note_end(self, one: Running, now_s: float) -> None:
        """Its last token is published."""
        facts = {"choice": one.claim.job.choice, "tokens": one.sequence.num_output_tokens + 1}
        self.meters.phase(self.meters.decode, now_s - one.since_s, "decode", one.claim.taken.request, **facts)

    async def settle(self) -> None:
        """Publish what is not yet; while nothing is computed."""
        self.retire(await self.publish())

    async def preempt(self, one: Running) -> None:
        """Blocks ran out: the sequence gives its own back and is recomputed from its tokens."""
        self.meters.count(PREEMPTED)
        self.note_departure(one, "preempted")
        log.info("sequence_preempted", request_id=one.claim.job.request_id, num_tokens=one.sequence.num_tokens)
        if one.sequence.num_blocks(self.block_size) > self.space.num_blocks:
            await self.intake.fail(one.claim, f"the sequence outgrew the KV pool of {self.space.num_blocks} blocks")
        else:
            await self.intake.hand_over(one.claim, one.prefill_job(one.claim.job.hop + 1), Phase.PREFILL_QUEUED)
        self.batch.free(one.sequence)

    # -- who leaves ----------------------------------------------------------------------------------------------

    @property
    def running(self) -> list[Running]:
        """Who is in the batch, oldest first."""
        return self.batch.running

    def retire(self, some: Iterable[Running]) -> None:
        """They leave the batch, if they are in it."""
        for one in some:
            if one in self.running:
                self.used_share.note(one.sequence.num_output_tokens / one.sequence.sampling.max_new_tokens, 1)
                self.batch.leave(one)

    async def follow_cancels(self) -> None:
        """A sequence that was ended from outside leaves at the next step."""
        async for key in self.broker.cancels.listen():
            self.drain.forget(key)
            self.batch.cancel(key)

    def leaving(self) -> list[Running]:
        """Whose sequence has ended, whom others took over while we slept, and whose time is over."""
        return [one for one in self.running if self.is_lost(one) or self.intake.is_late(one.claim)]

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

    async def leave(self) -> None:
        """Hand every sequence on: it continues on another worker from its last published token."""
        self.board.state = WorkerState.DRAINING
        self.heartbeat.wake()  # so that a worker that stops at the same time does not count on us
        leaving = sorted(self.batch.here, key=lambda one: one.claim.priority.rank)
        self.batch.running, self.batch.joining = [], []
        for one in leaving:
            self.note_departure(one, "stopping")
        await self.drain.run(leaving, self.admission.pull_rate.value)


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
    turns = StepTurns()
    between_slices = turns.wait if model.device.type == "cpu" else None  # a GPU's copies take no cores from its steps
    with ExitStack() as stack:
        pool, exported = await on_passing_thread(open_pool, settings, board.worker_id, loaded)
        if exported is not None:
            stack.enter_context(exported)
            board.export = seal.seal_export(exported.export)
        receiver = await on_passing_thread(
            start_receiver, settings.kv_transfer, board.worker_id, loaded, between_slices
        )
        stack.callback(receiver.close)
        if ranks is not None:
            ranks.serve(num_blocks)
        board.read_transfers = lambda: receiver.counts
        board.meters.read_pairs = lambda: receiver.pairs
        # A worker killed beside us leaves its pool in /dev/shm, and our mapping keeps the memory.
        heartbeat.on_tick += [sweep_segments, receiver.prune]
        graphs = await on_passing_thread(decode_graphs, settings, model, pool, board.say)
        runner = ModelRunner(model, pool, ranks.step if ranks else alone, graphs, loaded.grammars)
        # On GPUs the pool leaves no room for a prefill step, and prefill is what they are many for.
        can_prefill = model.device.type == "cpu" and not model.is_reward and settings.decode.local_prefill != "never"
        sender = None if exported is None else exported.sender
        growth = None
        if sender is not None:
            growth = growth_of(settings.kv, pool.layout.block_bytes, num_blocks, sender.reserve, sender.num_reservable)
        has_cache = can_prefill and settings.kv.prefix_cache
        space = BlockSpace(num_blocks, settings.kv.block_size, has_cache, growth=growth)
        library = cpu_build.loaded() if model.device.type == "cpu" else None
        worker = DecodeWorker(
            settings, broker, board, heartbeat, runner, pool, space, receiver, seal, sender, turns, library
        )
        if can_prefill:
            await on_passing_thread(measure_pace, runner, space, worker.local.pace)
        else:
            worker.local.turn_off()
        worker.stopping = listen()
        board.max_running = settings.decode.max_running
        board.ready(model_hash=model.model_hash, block_size=settings.kv.block_size, num_blocks=num_blocks)
        log.info("worker_ready", num_blocks=num_blocks, capacity_tokens=num_blocks * settings.kv.block_size)
        await worker.run()
