"""`python -m bench.relay.worker MODEL_DIR`: a prefill and a decode worker without a model, in one process.

It does with Redis what the real ones do: takes prefill jobs, publishes the first token, hands over, takes the decode
job, and at each step appends one token per running stream in one call. What a step computes is left out. Orders come
on stdin, one JSON line each: a Case, upon which it takes that many streams and says `ready` on stdout; then any line,
upon which it steps; then it says a WorkerReport.
"""

import asyncio
import itertools
import random
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import tokenizers
from redis.asyncio import Redis

from bench.relay.case import Case
from bench.relay.latency import WorkerReport
from broker.client import Broker, open_broker
from broker.heartbeat import Heartbeat
from broker.intake import Claim, Intake
from broker.job_queue import JobQueue
from broker.status_board import StatusBoard
from messages.job import DecodeJob, Phase, PrefillJob
from messages.kv_transfer import KVHandle
from messages.token_event import FinishReason, TokenEvent
from messages.worker_status import Role
from settings.loading import Settings, load_settings
from telemetry import configure_logging

_TEXT = (
    "A queue is a line of things that wait for their turn. Whoever comes first is served first, unless somebody more "
    "urgent stands beside it: 'naïve' schedulers forget the rest (and starve it), good ones do not. Numbers such as "
    "3.14159 or 2,048 are tokens too.\n\n- One token per step,\n- one step per batch.\n"
)
_TAKE_COUNT = 64
_MAX_RUNNING = 4096
_BLOCK_MS = 200
_NUM_LOGPROBS = 997

JobT = TypeVar("JobT", PrefillJob, DecodeJob)


@dataclass(slots=True)
class Running:
    """One stream in the batch."""

    claim: Claim[DecodeJob]
    index: int  # of its next token


def count_round_trips(client: Redis) -> Callable[[], int]:
    """How often anything was sent on `client`'s connections from now on; a script or a pipeline is sent once."""
    pool: Any = client.connection_pool
    num_sent = 0

    class Counting(pool.connection_class):  # type: ignore[misc]
        async def send_packed_command(self, *args: Any, **options: Any) -> None:
            nonlocal num_sent
            num_sent += 1
            await super().send_packed_command(*args, **options)

    pool.connection_class = Counting
    return lambda: num_sent


class SimulatedWorker:
    """Both roles, stepped as one."""

    def __init__(
        self, broker: Broker, prefill: Intake[PrefillJob], decode: Intake[DecodeJob], token_ids: Sequence[int]
    ) -> None:
        self._broker = broker
        self._prefill, self._decode = prefill, decode
        self._running: list[Running] = []
        self._token_ids = itertools.cycle(token_ids)
        source = random.Random(1)
        self._logprobs = itertools.cycle([-abs(source.gauss(0, 1)) for _ in range(_NUM_LOGPROBS)])

    async def gather(self, num_streams: int) -> None:
        """Until so many streams run."""
        while len(self._running) < num_streams:
            for claim in await self._prefill.next_claims(_TAKE_COUNT, _BLOCK_MS):
                job = claim.job
                await self._broker.requests.append([claim.next_event(self._next_token(), 0)])
                handle = KVHandle(job.request_id, "simulated", "simulated", 1, 0, 1, "simulated", 1, [0])
                decode_job = DecodeJob(job.request_id, job.choice, job.hop + 1, handle)
                await self._prefill.hand_over(claim, decode_job, Phase.DECODE_QUEUED)
            for decode_claim in await self._decode.next_claims(_TAKE_COUNT, 0):
                self._running.append(Running(decode_claim, len(decode_claim.taken.events)))

    async def run(self, case: Case) -> tuple[list[int], int]:
        """Every step of the case: (when each began, how many events were refused)."""
        stamps_ns, num_refused = [], 0
        begin_s = time.monotonic()
        for number in range(1, case.num_steps + 1):
            stamps_ns.append(time.monotonic_ns())
            num_refused += await self._step(FinishReason.LENGTH if number == case.num_steps else None)
            await asyncio.sleep(max(0.0, begin_s + number * case.step_s - time.monotonic()))
        return stamps_ns, num_refused

    async def retire(self) -> None:
        """Acknowledge every stream's job."""
        for one in self._running:
            await self._decode.done(one.claim)
        self._running = []

    async def _step(self, reason: FinishReason | None) -> int:
        appends = [one.claim.next_event(self._next_token(reason), one.index) for one in self._running]
        accepted = await self._broker.requests.append(appends)
        for one in self._running:
            one.index += 1
        return accepted.count(False)

    def _next_token(self, reason: FinishReason | None = None) -> TokenEvent:
        return TokenEvent(next(self._token_ids), next(self._logprobs), reason)


async def obey(settings: Settings, token_ids: Sequence[int]) -> None:
    """Do what stdin says until it ends."""
    loop = asyncio.get_running_loop()

    async def order() -> str:
        return await loop.run_in_executor(None, sys.stdin.readline)

    async with (
        open_broker(settings.redis, settings.queue, settings.stream, is_patient=True) as broker,
        AsyncExitStack() as stack,
    ):
        num_round_trips = count_round_trips(broker.redis)
        worker = SimulatedWorker(
            broker,
            await _intake(stack, settings, broker, Role.PREFILL, broker.prefill_queue, Phase.PREFILLING),
            await _intake(stack, settings, broker, Role.DECODE, broker.decode_queue, Phase.DECODING),
            token_ids,
        )
        while line := await order():
            case = msgspec.json.decode(line, type=Case)
            await worker.gather(case.num_streams)
            _say(b"ready")
            await order()
            cpu_s, num_before = time.process_time(), num_round_trips()
            stamps_ns, num_refused = await worker.run(case)
            report = WorkerReport(stamps_ns, time.process_time() - cpu_s, num_round_trips() - num_before, num_refused)
            await worker.retire()
            _say(msgspec.json.encode(report))


async def _intake(
    stack: AsyncExitStack, settings: Settings, broker: Broker, role: Role, queue: JobQueue[JobT], phase: Phase
) -> Intake[JobT]:
    """Of a worker of `role` that is registered and ready."""
    await queue.ensure()
    board = StatusBoard(role)
    board.max_running = _MAX_RUNNING
    board.ready(model_hash="simulated", block_size=16, num_blocks=1 << 20)
    heartbeat = Heartbeat(settings.redis, settings.queue, board.worker_id, role, board.read)
    heartbeat.start()
    stack.callback(heartbeat.stop)
    return Intake(broker, queue, heartbeat, board.worker_id, phase, settings.queue)


def _say(line: bytes) -> None:
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()


def main() -> None:
    """The process."""
    settings = load_settings()
    configure_logging(settings.log, process="simulated worker")
    tokenizer = tokenizers.Tokenizer.from_file(str(Path(sys.argv[1]) / "tokenizer.json"))
    asyncio.run(obey(settings, tokenizer.encode(_TEXT, add_special_tokens=False).ids))


if __name__ == "__main__":
    main()
