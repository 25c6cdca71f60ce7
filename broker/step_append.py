"""The events of one step on their way into their streams, and to the API processes that wait for them.

The hot path of every token: one script call (broker/lua/append.lua), or two at once. Knows neither workers nor HTTP.
"""

import asyncio
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from redis.asyncio import Redis

from broker.choice import Append, member_of
from broker.keys import Keys
from broker.scripts import Argument, Call, load_script
from messages.token_event import RelayedEvent, RelayedEvents
from messages.wire import encode
from settings.broker import StreamSettings

TWO_TRIPS_FROM = 32  # events of one step
RELAY_EXPIRE_S = 60  # a relay nobody writes to; an API process that died leaves nothing behind


async def append_step(redis: Redis, keys: Keys, stream: StreamSettings, items: Sequence[Append]) -> list[bool]:
    """Which of the events are accepted; `RequestLog.append` says what that means. Raises redis errors."""
    if not items:
        return []
    half = len(items) // 2
    if len(items) < TWO_TRIPS_FROM or _have_a_choice_in_common(items[:half], items[half:]):
        return await _append(redis, keys, stream, items)
    # While Redis and the API process work on the first half, the second is encoded: it halves what a token waits
    # for the other tokens of its step.
    first, second = await asyncio.gather(
        _append(redis, keys, stream, items[:half]), _append(redis, keys, stream, items[half:])
    )
    return first + second


async def _append(redis: Redis, keys: Keys, stream: StreamSettings, items: Sequence[Append]) -> list[bool]:
    script, item_keys, arguments = append_call(keys, stream, items)
    return accepted(await script.run(redis, item_keys, arguments))


def accepted(answers: Sequence[int]) -> list[bool]:
    """What the script's answer says of each event."""
    return [answer == 1 for answer in answers]


def append_call(keys: Keys, stream: StreamSettings, items: Sequence[Append]) -> Call:
    """The script that publishes the events, all in one."""
    item_keys: list[Argument] = [keys.active_sizes(), keys.active_phases(), keys.reader_leases()]
    arguments: list[Argument] = [
        stream.keep_s,
        keys.relay(""),
        stream.relay_max_entries,
        RELAY_EXPIRE_S,
        len(items),
    ]
    relayed: dict[str, list[RelayedEvent]] = {}
    for item in items:
        event, api_id = item.event, item.api_id
        place = _place(keys, item.request_id, item.choice)
        item_keys += (place.record, place.tokens)
        arguments += (
            item.choice,
            place.member,
            item.epoch,
            item.index,
            0 if event.finish_reason is None else 1,
            encode(event),
            api_id,
        )
        if api_id:
            relayed.setdefault(api_id, []).append(RelayedEvent(place.member, item.index, event))
    for api_id, events in relayed.items():
        arguments += (api_id, len(events), encode(RelayedEvents(events)))
    return Call(load_script("append"), item_keys, arguments)


def _have_a_choice_in_common(some: Sequence[Append], others: Sequence[Append]) -> bool:
    """Whether their order matters."""
    places = {(item.request_id, item.choice) for item in some}
    return any((item.request_id, item.choice) in places for item in others)


class _Place(NamedTuple):
    """How a choice is called in Redis."""

    record: str
    tokens: str
    member: str


@lru_cache(maxsize=4096)  # more than the sequences that a worker runs at a time
def _place(keys: Keys, request_id: str, choice: int) -> _Place:
    return _Place(keys.record(request_id), keys.tokens(request_id, choice), member_of(request_id, choice))
