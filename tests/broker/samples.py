"""Requests, jobs and events as the broker's tests need them, and waiting with a deadline."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from broker.choice import Append, Taken
from broker.client import Broker
from broker.job_queue import QueueEntry
from broker.subscription import Subscription
from messages.job import DecodeJob, Phase, PrefillJob
from messages.kv_transfer import KVHandle
from messages.request import GenerationRequest, Priority, SamplingParams
from messages.token_event import FinishReason, RelayedEvent, RelayedEvents, TokenEvent
from messages.wire import decode, encode

API_ID = "api-1"
STOP = TokenEvent(token_id=2, finish_reason=FinishReason.STOP)
ABORT = TokenEvent(finish_reason=FinishReason.ABORT)


def make_request(
    request_id: str = "request",
    n: int = 1,
    api_id: str = API_ID,
    priority: Priority = Priority.NORMAL,
    prompt_tokens: int = 3,
) -> GenerationRequest:
    """Prompt tokens 1, 2, 3, ..., at most 20 new ones."""
    sampling = SamplingParams(seed=7, max_new_tokens=20)
    prompt = list(range(1, prompt_tokens + 1))
    return GenerationRequest(request_id, prompt, sampling, n=n, api_id=api_id, priority=priority)


def make_decode_job(request_id: str = "request", choice: int = 0, hop: int = 2) -> DecodeJob:
    """A job whose handle leads nowhere."""
    handle = KVHandle("transfer", "prefill-1", "pool", 1, 0, 1, "layout", 3, [0])
    return DecodeJob(request_id, choice, hop, handle)


def make_append(taken: Taken, index: int, event: TokenEvent | None = None, api_id: str = API_ID) -> Append:
    """`event`, or a token named by its index, under the taker's epoch."""
    event = event or TokenEvent(token_id=100 + index)
    return Append(taken.request.request_id, taken.choice, taken.epoch, index, event, api_id)


async def begin(broker: Broker, request_id: str = "request", n: int = 1) -> tuple[QueueEntry[PrefillJob], Taken]:
    """Create a request and take its first choice."""
    await broker.requests.create(make_request(request_id, n), max_waiting=100)
    (entry,) = await broker.prefill_queue.take("prefill-1", 1)
    taken = await broker.requests.take(entry.job, Phase.PREFILLING)
    assert taken is not None
    return entry, taken


async def relayed(broker: Broker, api_id: str = API_ID) -> list[dict[str, TokenEvent]]:
    """What each entry of the relay holds, each event by "member:index"."""
    entries: Any = await broker.redis.xrange(broker.keys.relay(api_id))
    found = []
    for _, fields in entries:
        events = decode(fields[b"events"], RelayedEvents).events
        found.append({f"{each.member}:{each.index}": each.event for each in events})
        assert len(found[-1]) == len(events)
    return found


def relay_entry(*events: tuple[str, int, TokenEvent]) -> dict[Any, Any]:
    """The fields of a relay's entry with those events."""
    return {"events": encode(RelayedEvents([RelayedEvent(*event) for event in events]))}


async def take_all(subscription: Subscription, within_s: float = 20.0) -> list[TokenEvent]:
    """Everything up to and with the terminal event."""
    events: list[TokenEvent] = []
    async with asyncio.timeout(within_s):
        while not events or events[-1].finish_reason is None:
            events += await subscription.take()
    return events


async def num_blocked(broker: Broker) -> int:
    """Clients that wait in a blocking read."""
    return int((await broker.redis.info("clients"))["blocked_clients"])


async def eventually(condition: Callable[[], Awaitable[bool]], within_s: float = 10.0) -> None:
    """Wait until the condition holds."""
    deadline = time.monotonic() + within_s
    while not await condition():
        assert time.monotonic() < deadline, f"not within {within_s} s: {condition}"
        await asyncio.sleep(0.005)
