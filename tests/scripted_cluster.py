"""Both workers in one event loop on a real Redis, real blocks and the real transfer; only the model is scripted.

The scripted model's next token is a hash of all tokens before it, and the KV it writes for a token is a hash of the
prefix that ends there. Before it computes it checks the KV of everything before. So a block that was pulled wrongly,
shared wrongly or reused too early fails the test, and the right output is known without running anything.
"""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch

from broker.client import Broker
from broker.deadline import now_ms
from broker.heartbeat import Heartbeat
from broker.status_board import StatusBoard
from decode_worker.worker import DecodeWorker
from engine.block_space import BlockSpace
from engine.kv_pool import KVLayout, KVPool
from engine.model_runner import PrefillChunk
from engine.sampler import Sampled
from engine.sequence import Sequence as EngineSequence
from kv_transfer.checksum import BlockSummer
from kv_transfer.host import host_id
from kv_transfer.receiver import KVReceiver
from kv_transfer.seal import Seal
from kv_transfer.sender import KVSender
from messages.request import GenerationRequest, Priority, SamplingParams
from messages.token_event import TokenEvent
from messages.worker_status import Role
from prefill_worker.worker import PrefillWorker
from settings.broker import QueueSettings, RedisSettings
from settings.kv import KVSettings, TransferSettings
from settings.loading import Settings
from settings.workers import DecodeSettings, PrefillSettings

LAYOUT = KVLayout(num_layers=1, num_kv_heads=1, block_size=16, head_dim=1, dtype=torch.float64)
LAYOUT_HASH = LAYOUT.hash("scripted")
EOS = 7
SEAL = Seal(b"the secret of the scripted cluster")


def prefix_hash(token_ids: Sequence[int]) -> int:
    """48 bits, exact in a float64."""
    return int.from_bytes(hashlib.sha256(repr(list(token_ids)).encode()).digest()[:6], "big")


def next_token(token_ids: Sequence[int]) -> int:
    return 100 + prefix_hash(token_ids) % 1000


def expected_output(prompt: list[int], num_tokens: int) -> list[int]:
    token_ids = list(prompt)
    for _ in range(num_tokens):
        token_ids.append(next_token(token_ids))
    return token_ids[len(prompt) :]


class ScriptedRunner:
    """What the workers ask of a ModelRunner."""

    eos_token_ids = frozenset({EOS})
    device_type = "cpu"

    def __init__(self, pool: KVPool) -> None:
        self.keys = pool.tensor[:, 0, 0, 0, :, 0]  # [num_blocks, block_size]
        self.before_step: Callable[[list[EngineSequence]], None] = lambda sequences: None
        self.num_computed = 0

    def prefill(self, chunks: list[PrefillChunk]) -> list[Sampled | None]:
        self.before_step([chunk.sequence for chunk in chunks])
        return [self._compute(chunk.sequence, chunk.num_tokens) for chunk in chunks]

    def decode(self, sequences: list[EngineSequence]) -> list[Sampled]:
        self.before_step(sequences)
        sampled = [self._compute(sequence, 1) for sequence in sequences]
        return [token for token in sampled if token is not None]

    def score(self, sequence: EngineSequence) -> float:
        return float(len(sequence.token_ids))

    def _compute(self, sequence: EngineSequence, num_tokens: int) -> Sampled | None:
        for place in range(sequence.num_computed_tokens):
            found = self.keys[sequence.block_table[place // 16], place % 16].item()
            assert found == prefix_hash(sequence.token_ids[: place + 1]), (
                f"wrong KV at {place} of {sequence.sequence_id}"
            )
        for place in range(sequence.num_computed_tokens, sequence.num_computed_tokens + num_tokens):
            self.keys[sequence.block_table[place // 16], place % 16] = prefix_hash(sequence.token_ids[: place + 1])
        sequence.num_computed_tokens += num_tokens
        self.num_computed += num_tokens
        if sequence.num_computed_tokens < sequence.num_tokens:
            return None
        return Sampled(next_token(sequence.token_ids), -1.0)


@dataclass
class Member:
    """One worker that runs as a task."""

    worker: PrefillWorker | DecodeWorker
    runner: ScriptedRunner
    heartbeat: Heartbeat
    task: asyncio.Task[None]
    sender: KVSender | None = None
    receiver: KVReceiver | None = None

    def die(self) -> None:
        """As SIGKILL does: nothing is handed back, the lease just runs out."""
        self.task.cancel()
        self.heartbeat._stopping = True
        self.heartbeat._wake.set()

    def fall_asleep(self) -> None:
        """As SIGSTOP does, once the runner stands at a gate: neither a beat, nor a step, nor a job taken."""

        async def take_nothing(*_: object) -> list[object]:
            await asyncio.Event().wait()
            return []

        self.heartbeat._beat = lambda: False  # type: ignore[method-assign]
        self.worker.intake.next_entries = take_nothing  # type: ignore[method-assign, assignment]

    async def stop(self) -> None:
        """As SIGTERM does."""
        self.worker.stopping.set()
        await asyncio.wait_for(self.task, 10)
        self.heartbeat.stop()

    def close(self) -> None:
        self.task.cancel()
        self.heartbeat._stopping = True
        self.heartbeat._wake.set()
        if self.sender is not None:
            self.sender.close()
        if self.receiver is not None:
            self.receiver.close()


@dataclass
class ScriptedCluster:
    """Start workers, send requests, read what was published."""

    broker: Broker
    redis: RedisSettings
    queue: QueueSettings
    members: list[Member] = field(default_factory=list)
    num_requests: int = 0
    max_ahead: int = 16

    def settings(self, num_blocks: int, token_budget: int, max_running: int) -> Settings:
        return Settings(
            redis=self.redis,
            queue=self.queue,
            kv=KVSettings(num_blocks=num_blocks),
            kv_transfer=TransferSettings(release_check_s=0.1, max_offers=64),
            prefill=PrefillSettings(token_budget=token_budget, max_ahead=self.max_ahead),
            decode=DecodeSettings(max_running=max_running),
        )

    def start_prefill(self, num_blocks: int = 64, token_budget: int = 64) -> Member:
        settings = self.settings(num_blocks, token_budget, 8)
        board = StatusBoard(Role.PREFILL)
        sender = KVSender.create(board.worker_id, num_blocks, LAYOUT.block_bytes, LAYOUT_HASH, 64, summer=BlockSummer())
        runner = ScriptedRunner(KVPool.over(LAYOUT, sender.buffer))
        heartbeat = Heartbeat(self.redis, self.queue, board.worker_id, board.role, board.read)
        space = BlockSpace(num_blocks, 16, prefix_cache=True)
        worker = PrefillWorker(settings, self.broker, board, heartbeat, runner, space, sender, SEAL)  # type: ignore[arg-type]
        return self._add(worker, runner, heartbeat, board, num_blocks, sender=sender)

    def start_decode(
        self,
        num_blocks: int = 64,
        max_running: int = 8,
        seal: Seal = SEAL,
        on_stall: Callable[[], object] = lambda: None,
        local_prefill: Literal["auto", "always", "never"] = "never",
    ) -> Member:
        settings = self.settings(num_blocks, 64, max_running)
        decode = settings.decode.model_copy(update={"local_prefill": local_prefill})
        settings = settings.model_copy(update={"decode": decode})
        board = StatusBoard(Role.DECODE)
        sender = KVSender.create(
            board.worker_id, num_blocks, LAYOUT.block_bytes, LAYOUT_HASH, max_running, summer=BlockSummer()
        )
        board.max_running = max_running
        board.export = seal.seal_export(sender.export(host_id()))
        pool = KVPool.over(LAYOUT, sender.buffer)
        runner = ScriptedRunner(pool)
        receiver = KVReceiver(LAYOUT_HASH, LAYOUT.block_bytes, summer=BlockSummer())
        heartbeat = Heartbeat(
            self.redis,
            self.queue,
            board.worker_id,
            board.role,
            board.read,
            num_rounds=board.num_rounds,
            on_stall=on_stall,
        )
        space = BlockSpace(num_blocks, 16, prefix_cache=local_prefill != "never")
        worker = DecodeWorker(settings, self.broker, board, heartbeat, runner, pool, space, receiver, seal, sender)  # type: ignore[arg-type]
        return self._add(worker, runner, heartbeat, board, num_blocks, sender=sender, receiver=receiver)

    def _add(
        self,
        worker: PrefillWorker | DecodeWorker,
        runner: ScriptedRunner,
        heartbeat: Heartbeat,
        board: StatusBoard,
        num_blocks: int,
        sender: KVSender | None = None,
        receiver: KVReceiver | None = None,
    ) -> Member:
        board.ready(model_hash="scripted", block_size=16, num_blocks=num_blocks)
        heartbeat.start()
        member = Member(worker, runner, heartbeat, asyncio.create_task(worker.run()), sender, receiver)
        self.members.append(member)
        return member

    async def send(
        self,
        prompt: list[int],
        num_tokens: int,
        n: int = 1,
        kind: str = "generate",
        priority: Priority = Priority.NORMAL,
        timeout_s: float | None = None,
        api_id: str = "",
    ) -> str:
        """Create a request as the API does; its id."""
        self.num_requests += 1
        request_id = f"request-{self.num_requests}"
        sampling = SamplingParams(seed=1, max_new_tokens=num_tokens, ignore_eos=True)
        created_ms = now_ms()
        request = GenerationRequest(
            request_id,
            prompt,
            sampling,
            n=n,
            kind=kind,  # type: ignore[arg-type]
            api_id=api_id,
            created_ms=created_ms,
            priority=priority,
            deadline_ms=created_ms + round(timeout_s * 1000) if timeout_s is not None else 0,
        )
        await self.broker.requests.create(request, max_waiting=100)
        return request_id

    async def events(self, request_id: str, choice: int = 0) -> list[TokenEvent]:
        return [event for _, event in await self.broker.request_reader.read(request_id, choice)]

    async def ended(self, request_id: str, choice: int = 0, deadline_s: float = 15) -> list[TokenEvent]:
        """Every event, once the terminal one is there; indexes are contiguous from 0."""
        give_up = time.monotonic() + deadline_s
        while True:
            self.check()
            numbered = await self.broker.request_reader.read(request_id, choice)
            if numbered and numbered[-1][1].finish_reason is not None:
                assert [index for index, _ in numbered] == list(range(len(numbered)))
                assert all(event.finish_reason is None for _, event in numbered[:-1])
                return [event for _, event in numbered]
            assert time.monotonic() < give_up, f"{request_id} has not ended; {len(numbered)} events"
            await asyncio.sleep(0.01)

    async def until(self, condition: Callable[[], bool], what: str, deadline_s: float = 10) -> None:
        give_up = time.monotonic() + deadline_s
        while not condition():
            self.check()
            assert time.monotonic() < give_up, f"not in time: {what}"
            await asyncio.sleep(0.005)

    def check(self) -> None:
        """A worker that failed by itself fails the test."""
        for member in self.members:
            if member.task.done() and not member.task.cancelled() and (error := member.task.exception()):
                raise error

    async def until_clean(self) -> None:
        """Every block of the workers that live is free and both queues are empty."""
        give_up = time.monotonic() + 5
        while True:
            self.check()
            alive = [member.worker for member in self.members if not member.task.done()]
            used = [worker.space.num_used for worker in alive]
            queues = self.broker.prefill_queue, self.broker.decode_queue, self.broker.local_queue
            depths = [await queue.depth() for queue in queues]
            if not any(used) and not any(depths) and not await self.broker.request_reader.loads():
                for worker in alive:
                    worker.space.check_integrity()
                return
            assert time.monotonic() < give_up, f"used blocks {used}, queue depths {depths}"
            await asyncio.sleep(0.01)


def tokens_of(events: list[TokenEvent]) -> list[int]:
    return [event.token_id for event in events if event.token_id is not None]


@asynccontextmanager
async def scripted_cluster(
    broker: Broker, redis: RedisSettings, queue: QueueSettings
) -> AsyncIterator[ScriptedCluster]:
    cluster = ScriptedCluster(broker, redis, queue)
    await broker.prefill_queue.ensure()
    await broker.decode_queue.ensure()
    await broker.local_queue.ensure()
    try:
        yield cluster
    finally:
        for member in cluster.members:
            member.close()
        await asyncio.gather(*(member.task for member in cluster.members), return_exceptions=True)
