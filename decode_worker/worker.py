"""The decode worker: everybody in the batch decodes one token a step, which is published, until all have ended.

`scheduler.py` decides, this file does. Two loops share the event loop: `admission.py` takes jobs and pulls their KV,
`run` steps. The tokens of a step are published (`publisher.py`) while the next one is computed, of one step at a time;
where nobody comes, goes or ends, that one has begun by itself (`steps.py`).
It knows the broker and the engine; it must not know HTTP, text, nor how KV comes here.
"""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
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
from decode_worker.departures import Departures
from decode_worker.drain import Drain
from decode_worker.local_prefill import LocalPrefill
from decode_worker.publisher import Publisher
from decode_worker.running import Running
from decode_worker.scheduler import Demand, StepPlan, expected_stay_s, plan_step
from decode_worker.shard_receiver import ShardReceiver
from decode_worker.step_turns import StepTurns
from decode_worker.steps import Step, Steps
from engine.block_space import BlockSpace
from engine.kv_pool import KVPool
from engine.model_runner import ModelRunner
from kv_transfer.offers import Offers
from kv_transfer.receiver import KVReceiver
from kv_transfer.seal import Seal
from kv_transfer.sender import KVSender
from messages.job import Phase
from messages.worker_status import WorkerState
from settings.loading import Settings
from telemetry import get_logger

log = get_logger()

STEP_WINDOW = 32  # steps over which the time of one is taken
HANDOFF_TRIPS = 4  # round trips to Redis of a hand-off: hand over, be told, take, release


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
        self.begun: Step | None = None  # the next step, which the thread went on to by itself
        self.pace = Rolling(STEP_WINDOW)  # seconds per step
        self.last_step_s = 0.0
        self.courtesy = Courtesy(settings.decode, library)
        self.stopping = asyncio.Event()
        self.compute_thread = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self.steps = Steps(runner, self.compute_thread, self.is_loop_needed)
        seal = seal or Seal()
        self.batch = Batch(space)
        self.departures = Departures(self.intake, self.batch, self.meters, self.block_size)
        self.publisher = Publisher(broker, self.intake, self.batch, self.departures, self.meters)
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
            while self.begun or not taking_in.done():
                if not self.begun:
                    await self.make_way()
                await self.step()
                if self.batch.prefilling and not self.begun:
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

    async def make_way(self) -> None:
        """Before a step: wait until there is anybody, and leave the cores to those who want them first."""
        if not self.batch.num_here:
            await self.publisher.publish()  # of those who have just ended
        if not self.batch.num_here:
            self.turns.rest()
            self.show()  # what the last step freed
            await wait(self.batch.work_came)
        if self.running and self.courtesy.wants_rest():
            await self.settle()
            await self.courtesy.rest(self.last_step_s, len(self.running))

    async def step(self) -> None:
        """Everybody who fits decodes one token, while those of the step before are published. Who has got its last one
        leaves."""
        began = time.perf_counter()
        step = self.begun or await self.begin()
        if step is None:
            await self.settle()
            return
        self.turns.begin_step()
        self.show()
        refused = await self.publisher.publish()
        allowed = [one.sequence.sampling.max_new_tokens for one in step.batch]
        self.board.sequence_s = expected_stay_s(self.pace.value, allowed, self.departures.used_share.value)
        if not refused and self.prepare(step):
            self.steps.follow(step)
        outputs = await step.outputs
        self.begun = step.following if step.goes_on else None
        self.departures.retire(refused)  # not sooner: the step wrote into their blocks
        self.publisher.unpublished = [output for output in outputs if output.one not in refused]
        for output in self.publisher.unpublished:
            if output.is_last and not output.append.event.error:  # its conversation may go on
                sequence = output.one.sequence
                self.space.remember(
                    sequence.token_ids[: sequence.num_computed_tokens], sequence.block_table, sequence.images
                )
        self.departures.retire(output.one for output in self.publisher.unpublished if output.is_last)
        self.last_step_s = time.perf_counter() - began
        self.pace.note(self.last_step_s, 1)
        self.meters.decode_step.observe(self.last_step_s)
        self.meters.batch.observe(len(step.batch))

    def show(self) -> None:
        """Where the loop is, for the heartbeat. While a pull is stuck it shows nothing, as if the loop were."""
        if not self.admission.is_pull_stuck:
            self.board.tick(free_blocks=self.space.num_free, num_running=len(self.running))

    async def begin(self) -> Step | None:
        """A step of whoever decodes now, if anybody does."""
        batch = await self.next_batch()
        return self.steps.begin(batch) if batch else None

    def is_loop_needed(self) -> bool:
        """On the compute thread, as a step ends: whether somebody waits who can only come between two steps."""
        return bool(self.batch.joining or self.batch.prefilling) or self.courtesy.wants_rest()

    def prepare(self, step: Step) -> bool:
        """While a step is computed: whether all of its batch can make the next one, with blocks for it. Then that one
        waits for nothing but this one's tokens."""
        if self.stopping.is_set() or self.departures.leaving() or any(one.is_suspect for one in step.batch):
            return False
        # Not by `num_tokens`: the step may have ended meanwhile, and a block too many is counted as another's.
        needs = [
            -(-(length + 1) // self.block_size) - len(one.sequence.block_table)
            for one, length in zip(step.batch, step.lengths, strict=True)
        ]
        if sum(needs) > self.space.num_free:
            return False
        for one, missing in zip(step.batch, needs, strict=True):
            if missing:
                one.sequence.block_table += self.space.allocate(missing)
        return True

    async def next_batch(self) -> list[Running]:
        """Who decodes now, with blocks for it; who cannot, or must not, leaves."""
        self.batch.take_joined()
        leaving, plan = self.departures.leaving(), self.plan()
        if leaving or plan.preempt or any(one.is_suspect for one in self.running):
            # Who goes elsewhere takes along what its stream has, and whoever dies of a suspect has told all it had.
            await self.settle()
            leaving = self.departures.leaving()
            await self.departures.see_off(leaving)
            while (plan := self.plan()).preempt:  # once more where others share their blocks, which then are not free
                if self.batch.prefilling:
                    await self.local.leave()  # who has not begun to speak gives way first
                    continue
                for position in plan.preempt:
                    await self.departures.preempt(self.running[position])
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

    async def settle(self) -> None:
        """Publish what is not yet; while nothing is computed."""
        self.departures.retire(await self.publisher.publish())

    # -- who leaves ----------------------------------------------------------------------------------------------

    @property
    def running(self) -> list[Running]:
        """Who is in the batch, oldest first."""
        return self.batch.running

    async def follow_cancels(self) -> None:
        """A sequence that was ended from outside leaves at the next step."""
        async for key in self.broker.cancels.listen():
            self.drain.forget(key)
            self.batch.cancel(key)

    async def leave(self) -> None:
        """Hand every sequence on: it continues on another worker from its last published token."""
        self.board.state = WorkerState.DRAINING
        self.heartbeat.wake()  # so that a worker that stops at the same time does not count on us
        leaving = sorted(self.batch.here, key=lambda one: one.claim.priority.rank)
        self.batch.running, self.batch.joining = [], []
        for one in leaving:
            self.departures.note_departure(one, "stopping")
        await self.drain.run(leaving, self.admission.pull_rate.value)
