"""`python -m bench.chaos.fuzz --messages 100000 --seed 1`: what comes through Redis need not be a message of ours.

Mutated messages go to whoever would read them: `decode`, the queues and the intake behind them, the request log, the
relay, an inbox, the registry, and handles to the receiver of a pool. A decoder raises WireError, a pull
KVTransferFailed, and a worker or an API process raises nothing at all: it answers the one request and goes on. Needs
the development dependencies. Exits with 1 when something else was raised.
"""

import argparse
import asyncio
import contextlib
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import fakeredis
import structlog
import torch

from bench.chaos.mutation import examples, mutated
from broker.client import Broker, assemble_broker
from broker.intake import Intake
from broker.relay import RelayReader
from errors import KVTransferFailed, WireError
from kv_transfer.checksum import BlockSummer
from kv_transfer.host import host_id
from kv_transfer.receiver import KVReceiver
from kv_transfer.sender import KVSender
from kv_transfer.shared_memory import ShmDriver
from messages.job import DecodeJob, Phase, PrefillJob
from messages.kv_transfer import KVHandle, PoolExport, Release
from messages.request import GenerationRequest, SamplingParams
from messages.token_event import RelayedEvent, RelayedEvents, TokenEvent
from messages.wire import Message, decode, encode
from messages.worker_status import WorkerStatus
from settings.broker import QueueSettings, StreamSettings

BLOCK_BYTES, NUM_BLOCKS = 64, 8
NEVER_FULL = 10**9
RESET_EVERY = 2000  # messages; so that no queue grows


class Escaped(AssertionError):
    """A reader raised what it must not raise. The message that did it is in the text."""


class Holding:
    """A heartbeat that only remembers."""

    is_alive = True

    def hold(self, entry: object) -> None:
        """See Heartbeat."""

    drop = hold

    def holds(self, entry: object) -> bool:
        """See Heartbeat."""
        return True

    def held(self) -> set[tuple[str, bytes]]:
        """See Heartbeat."""
        return set()


class Readers:
    """Everybody who reads a message, over a Redis of their own."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        holding: Any = Holding()
        settings = broker.queue_settings
        self.prefill = Intake(broker, broker.prefill_queue, holding, "prefill-0", Phase.PREFILLING, settings)
        self.decode = Intake(broker, broker.decode_queue, holding, "decode-0", Phase.DECODING, settings)
        self.inbox = broker.inbox("prefill-0")
        self.relay = RelayReader(broker, "api")
        self.num_requests = 0

    async def begin(self) -> GenerationRequest:
        """A request in good order, for the message to do harm to."""
        self.num_requests += 1
        request = GenerationRequest(f"fuzz-{self.num_requests}", [1, 2], SamplingParams(seed=1), n=1, api_id="api")
        await self.broker.requests.create(request, NEVER_FULL)
        return request

    async def read(self, kind: type[Message], data: bytes) -> None:
        """Whoever reads messages of this kind gets `data`. Raises what they raise."""
        redis, keys = self.broker.redis, self.broker.keys
        if kind is GenerationRequest:
            request = await self.begin()
            await redis.hset(keys.record(request.request_id), "request", data)
            await self.prefill.next_claims(1, 0)
            await self._must_have_ended(request, data, GenerationRequest)
        elif kind is PrefillJob or kind is DecodeJob:
            queue, intake = (
                (keys.prefill_queue(), self.prefill) if kind is PrefillJob else (keys.decode_queue(), self.decode)
            )
            request = await self.begin()
            await redis.delete(keys.prefill_queue())
            await self.broker.prefill_queue.ensure()
            await redis.xadd(queue, {"id": f"{request.request_id}:0", "job": data})
            await intake.next_claims(1, 0)
            await self._must_have_ended(request, data, kind)
        elif kind is TokenEvent:
            await self._read_event(data)
        elif kind is RelayedEvents:
            self._read_relayed(data)
        elif kind is Release:
            await redis.xadd(keys.inbox("prefill-0"), {"release": data})
            await self.inbox.send(Release("the next one"))
            assert Release("the next one") in await self.inbox.receive(), "a release was lost with a broken one"
        else:
            await redis.hset(keys.workers(), "prefill-0", data)
            await self.broker.registry.live()
            await self.broker.registry.find("prefill-0")

    async def _read_event(self, data: bytes) -> None:
        request = await self.begin()
        subscription = self.relay.open(request.request_id, 0)
        redis, keys = self.broker.redis, self.broker.keys
        await redis.xadd(keys.tokens(request.request_id, 0), {"event": data}, id="1-0")
        subscription.heard_s = 0.0
        await self.relay._fill()
        self.relay.close(subscription)
        await self.prefill.next_claims(1, 0)
        await self._must_have_ended(request, data, TokenEvent)

    def _read_relayed(self, data: bytes) -> None:
        subscription, other = self.relay.open("r", 0), self.relay.open("fuzz-other", 0)
        self.relay._dispatch([data])
        self.relay._dispatch([encode(RelayedEvents([RelayedEvent("fuzz-other:0", 0, TokenEvent(1))]))])
        assert other.num_ready == 1, "an event was lost behind a broken entry"
        self.relay.close(subscription)
        self.relay.close(other)

    async def _must_have_ended(self, request: GenerationRequest, data: bytes, kind: type[Message]) -> None:
        """What cannot be read ends its request: else its client would wait for ever."""
        try:
            decode(data, kind)
        except WireError:
            assert await self.broker.request_reader.is_finished(request.request_id, 0), "its request has no end"

    async def reset(self) -> None:
        """Forget all of it."""
        await self.broker.redis.flushall()
        await self.broker.prefill_queue.ensure()
        await self.broker.decode_queue.ensure()
        self.inbox = self.broker.inbox("prefill-0")


class Pools:
    """An owner with an offer, and a receiver that knows only what it is told."""

    def __init__(self, directory: Path) -> None:
        driver, summer = ShmDriver(directory), BlockSummer()
        self.sender = KVSender.create("prefill-0", NUM_BLOCKS, BLOCK_BYTES, "layout", 4, driver, summer)
        self.sender.buffer.copy_(torch.arange(NUM_BLOCKS * BLOCK_BYTES) % 251)
        self.handle = self.sender.offer("transfer", [5, 6, 2], 40)
        self.export = self.sender.export(host_id())
        self.receiver = KVReceiver("layout", BLOCK_BYTES, driver, summer=summer)
        self.pool = torch.zeros((NUM_BLOCKS, BLOCK_BYTES), dtype=torch.uint8)

    def pull(self, handle: KVHandle, export: PoolExport | None) -> bool:
        """As a decode worker does. Whether it succeeded. Raises what the receiver raises besides KVTransferFailed."""
        try:
            self.receiver.pull(handle, self.pool, list(range(len(handle.block_ids))), export)
        except KVTransferFailed:
            return False
        theirs = self.sender.buffer.view(NUM_BLOCKS, BLOCK_BYTES)[handle.block_ids]
        assert torch.equal(theirs, self.pool[: len(handle.block_ids)]), "other bytes than were offered"
        return True

    def close(self) -> None:
        """Let go of the memory."""
        self.receiver.close()
        self.sender.close()


class Fuzzer:
    """Makes messages and hands them out; `counts` says what became of them."""

    def __init__(self, seed: int, readers: Readers, pools: Pools) -> None:
        self._source = random.Random(seed)
        self._readers, self._pools = readers, pools
        self._messages = examples(pools.handle, pools.export)
        self._encoded = [encode(message) for message in self._messages]
        self.counts: Counter[str] = Counter()

    async def step(self) -> None:
        """One message. Raises Escaped."""
        source = self._source
        message = source.choice(self._messages)
        data = mutated(encode(message), source.choice(self._encoded), source)
        kind = type(message)
        try:
            await self._try(kind, data)
        except Exception as error:
            raise Escaped(f"{kind.__name__} {data!r}: {error!r}") from error

    async def _try(self, kind: type[Message], data: bytes) -> None:
        try:
            read = decode(data, kind)
        except WireError:
            self.counts["not a message"] += 1
        else:
            self.counts["a message all the same"] += 1
            assert encode(decode(encode(read), kind)) == encode(read)
            self._pull(read)
        await self._readers.read(kind, data)

    def _pull(self, read: Message) -> None:
        """Of what can be read, the handles and exports."""
        handle = read.kv_handle if isinstance(read, DecodeJob) else self._pools.handle
        export = read.export if isinstance(read, WorkerStatus) else self._pools.export
        if not isinstance(read, DecodeJob | WorkerStatus) or len(handle.block_ids) > NUM_BLOCKS:
            return
        is_pulled = self._pools.pull(handle, export)
        self.counts["pulled" if is_pulled else "not pulled"] += 1


async def fuzz(num_messages: int, seed: int) -> Counter[str]:
    """What became of so many messages. Raises Escaped."""
    async with _readers() as readers:
        with tempfile.TemporaryDirectory(prefix="pdq-fuzz-", dir="/dev/shm") as folder:
            pools = Pools(Path(folder))
            try:
                fuzzer = Fuzzer(seed, readers, pools)
                for number in range(num_messages):
                    if number % RESET_EVERY == 0:
                        await readers.reset()
                    await fuzzer.step()
                return fuzzer.counts
            finally:
                pools.close()


@contextlib.asynccontextmanager
async def _readers() -> AsyncIterator[Readers]:
    async with fakeredis.FakeAsyncRedis(server=fakeredis.FakeServer(), protocol=2) as client:
        yield Readers(assemble_broker(client, client, "fuzz", QueueSettings(), StreamSettings()))


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))  # refusals are no news here
    began_s = time.perf_counter()
    try:
        counts = asyncio.run(fuzz(options.messages, options.seed))
    except Escaped as error:
        print(f"ESCAPED {error}")
        return 1
    print(f"{options.messages:,} messages in {time.perf_counter() - began_s:.1f} s, nothing escaped")
    print(", ".join(f"{what} {count:,}" for what, count in counts.most_common()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
