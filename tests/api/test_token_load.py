"""The formulas of /token_load against an oracle of their own, and the route against real queues."""

import asyncio
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.token_load import expected_output, past_future_peak, token_load
from broker.choice import Append, SequenceLoad
from messages.job import DecodeJob, Phase, PrefillJob
from messages.kv_transfer import KVHandle
from messages.request import GenerationRequest, SamplingParams
from messages.token_event import FinishReason, TokenEvent
from messages.worker_status import Role, WorkerState
from settings.loading import Settings
from tests.api.fake_cluster import CAPACITY_TOKENS, FakeCluster, fake_cluster, run, status

PHASES = st.sampled_from(list(Phase))


@st.composite
def loads(draw: st.DrawFn) -> list[SequenceLoad]:
    made = []
    for index in range(draw(st.integers(0, 6))):
        max_new_tokens = draw(st.integers(1, 4000))
        output_tokens = draw(st.integers(0, max_new_tokens))
        prompt_tokens = draw(st.integers(1, 3000))
        made.append(
            SequenceLoad(
                f"r{index}", 0, draw(PHASES), prompt_tokens, max_new_tokens, draw(st.booleans()), output_tokens
            )
        )
    return made


def simulated_peak(running: list[SequenceLoad]) -> int:
    """Play the future: everybody holds a_i now and one more each step, and leaves after b_i steps."""
    held, left = {}, {}
    for load in running:
        most = load.max_new_tokens
        if not load.ignore_eos:
            most = min(most, max(load.output_tokens * 11 // 10, 1024))
        held[load.request_id] = load.prompt_tokens + load.output_tokens + 1
        left[load.request_id] = max(0, most - load.output_tokens - 1) + 6
    # Tokens only fall when somebody leaves, so the peak is at one of those moments.
    moments = set(left.values())
    return max(
        (sum(held[one] + moment for one in held if left[one] >= moment) for moment in moments),
        default=0,
    )


@given(loads(), st.integers(1, 100_000))
def test_formulas_equal_the_oracle(sequences: list[SequenceLoad], capacity: int) -> None:
    decoding = [one for one in sequences if one.phase is Phase.DECODING]
    held = worst = waits = 0
    for one in sequences:
        worst += one.prompt_tokens + one.max_new_tokens
        if one in decoding:
            held += max(0, one.prompt_tokens + one.output_tokens - 1)
        elif one.ignore_eos:
            waits += one.prompt_tokens + one.max_new_tokens
        else:
            waits += one.prompt_tokens + min(one.max_new_tokens, max(one.output_tokens * 11 // 10, 1024))
    load = token_load(sequences, capacity)
    assert load.current_load == pytest.approx(held / capacity)
    assert load.logical_max_load == pytest.approx(worst / capacity)
    assert load.dynamic_max_load == pytest.approx((simulated_peak(decoding) + waits) / capacity)


@given(loads())
def test_queue_depth_raises_the_two_estimates(sequences: list[SequenceLoad]) -> None:
    more = [*sequences, SequenceLoad("new", 0, Phase.PREFILL_QUEUED, 10, 20, True, 0)]
    before, after = token_load(sequences, 1000), token_load(more, 1000)
    assert after.current_load == before.current_load
    assert after.dynamic_max_load == pytest.approx(before.dynamic_max_load + 0.03)
    assert after.logical_max_load == pytest.approx(before.logical_max_load + 0.03)


def test_idle_is_zero_and_no_capacity_is_full() -> None:
    idle, full = token_load([], 1000), token_load([], 0)
    assert (idle.current_load, idle.logical_max_load, idle.dynamic_max_load) == (0.0, 0.0, 0.0)
    assert (full.current_load, full.logical_max_load, full.dynamic_max_load) == (1.0, 1.0, 1.0)


def test_a_peak_by_hand() -> None:
    # a = 13, 25; b = 17, 7: after 7 steps both are there (20 + 32), after 17 only the first (30).
    running = [
        SequenceLoad("a", 0, Phase.DECODING, 10, 14, True, 2),
        SequenceLoad("b", 0, Phase.DECODING, 20, 6, True, 4),
    ]
    assert past_future_peak(running) == 52


@pytest.mark.parametrize(
    ("max_new_tokens", "ignore_eos", "output_tokens", "expected"),
    [(5000, True, 10, 5000), (5000, False, 10, 1024), (100, False, 10, 100), (5000, False, 2000, 2200)],
)
def test_expected_output(max_new_tokens: int, ignore_eos: bool, output_tokens: int, expected: int) -> None:
    assert (
        expected_output(SequenceLoad("r", 0, Phase.DECODING, 1, max_new_tokens, ignore_eos, output_tokens)) == expected
    )


# -- the route -------------------------------------------------------------------------------------------------------


@dataclass
class Held:
    """What one scripted sequence is, as the oracle counts it."""

    prompt_tokens: int
    max_new_tokens: int
    output_tokens: int = 0
    is_decoding: bool = False


class Queues:
    """Moves jobs through the real queues by hand, and keeps its own books."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster, self.broker = cluster, cluster.broker
        self.books: dict[str, Held] = {}

    async def put(self, request_id: str, prompt_tokens: int, max_new_tokens: int) -> None:
        sampling = SamplingParams(seed=1, max_new_tokens=max_new_tokens, ignore_eos=True)
        await self.broker.requests.create(GenerationRequest(request_id, [5] * prompt_tokens, sampling), 100)
        self.books[request_id] = Held(prompt_tokens, max_new_tokens)

    async def prefill(self) -> str:
        """Takes one job, publishes a token, hands over."""
        (entry,) = await self.broker.prefill_queue.take("p", 1)
        taken = await self.broker.requests.take(entry.job, Phase.PREFILLING)
        assert taken is not None
        job: PrefillJob = entry.job
        await self._append(job.request_id, taken.epoch)
        handle = KVHandle("t", "p", "pool", 1, 0, 1, "hash", 1, [0])
        decode = DecodeJob(job.request_id, 0, job.hop + 1, handle)
        assert await self.broker.requests.hand_over(entry, taken.epoch, decode, Phase.DECODE_QUEUED)
        return job.request_id

    async def decode(self, num_tokens: int, finish: bool = False) -> str:
        """Takes one job, publishes tokens, and ends it or leaves it running."""
        (entry,) = await self.broker.decode_queue.take("d", 1)
        taken = await self.broker.requests.take(entry.job, Phase.DECODING)
        assert taken is not None
        request_id = entry.job.request_id
        self.books[request_id].is_decoding = True
        for step in range(num_tokens):
            await self._append(request_id, taken.epoch, finish and step == num_tokens - 1)
        return request_id

    async def _append(self, request_id: str, epoch: int, last: bool = False) -> None:
        index = self.books[request_id].output_tokens
        event = TokenEvent(5, -1.0, FinishReason.LENGTH if last else None)
        assert await self.broker.requests.append([Append(request_id, 0, epoch, index, event, "")]) == [True]
        self.books[request_id].output_tokens += 1
        if last:
            del self.books[request_id]

    async def check(self) -> dict[str, float]:
        load: dict[str, float] = (await self.cluster.client.get("/token_load")).json()
        running = [one for one in self.books.values() if one.is_decoding]
        waiting = [one for one in self.books.values() if not one.is_decoding]
        as_loads = [
            SequenceLoad(str(i), 0, Phase.DECODING, one.prompt_tokens, one.max_new_tokens, True, one.output_tokens)
            for i, one in enumerate(running)
        ]
        peak = simulated_peak(as_loads) + sum(one.prompt_tokens + one.max_new_tokens for one in waiting)
        held = sum(one.prompt_tokens + one.output_tokens - 1 for one in running)
        worst = sum(one.prompt_tokens + one.max_new_tokens for one in self.books.values())
        assert load == {
            "current_load": pytest.approx(held / CAPACITY_TOKENS),
            "logical_max_load": pytest.approx(worst / CAPACITY_TOKENS),
            "dynamic_max_load": pytest.approx(peak / CAPACITY_TOKENS),
        }
        return load


def test_the_route_follows_the_queues(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings, takes_jobs=False) as cluster:
            await cluster.broker.decode_queue.ensure()
            queues = Queues(cluster)
            assert set((await queues.check()).values()) == {0.0}
            for request_id, prompt_tokens, max_new_tokens in [("a", 100, 50), ("b", 30, 200), ("c", 7, 9)]:
                await queues.put(request_id, prompt_tokens, max_new_tokens)
                await fresh(settings)
                await queues.check()
            for _ in range(3):
                await queues.prefill()
                await fresh(settings)
                await queues.check()
            assert (await queues.check())["current_load"] == 0.0
            for num_tokens in (1, 20):
                await queues.decode(num_tokens)
                await fresh(settings)
                assert (await queues.check())["current_load"] > 0
            await queues.decode(8, finish=True)
            await fresh(settings)
            await queues.check()
            for request_id in list(queues.books):
                await cluster.broker.requests.finish(request_id, 0, TokenEvent(finish_reason=FinishReason.ABORT))
                del queues.books[request_id]
            await fresh(settings)
            assert set((await queues.check()).values()) == {0.0}

    run(main())


async def fresh(settings: Settings) -> None:
    """Wait until what the API knows is older than it may be."""
    await asyncio.sleep(settings.api.token_load_max_age_s)


def test_capacity_is_that_of_the_decode_workers_that_hold_sequences(settings: Settings) -> None:
    async def main() -> None:
        async with fake_cluster(settings, takes_jobs=False) as cluster:
            await Queues(cluster).put("a", 50, 50)

            async def logical() -> float:
                await fresh(settings)
                value: float = (await cluster.client.get("/token_load")).json()["logical_max_load"]
                return value

            assert await logical() == pytest.approx(0.1)
            await cluster.beat(status(Role.DECODE, worker_id="decode-1"))
            assert await logical() == pytest.approx(0.05)
            await cluster.beat(status(Role.DECODE, worker_id="decode-1", state=WorkerState.LOADING))
            assert await logical() == pytest.approx(0.1)
            await cluster.beat(status(Role.DECODE, worker_id="decode-1", state=WorkerState.DRAINING))
            assert await logical() == pytest.approx(0.05)
            await cluster.broker.registry.leave("decode-1")
            await cluster.bury(Role.DECODE)
            await fresh(settings)
            assert set((await cluster.client.get("/token_load")).json().values()) == {1.0}

    run(main())
