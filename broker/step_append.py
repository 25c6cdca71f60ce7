"""The events of one step on their way into their streams, and to the API processes that wait for them.

The hot path of every token: one script call (broker/lua/append.lua), or two for a large step. Knows neither workers
nor HTTP.
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

LEAST_PIECE = 32  # events of one step that go alone; a third of a millisecond of Redis' time
MOST_PIECES = 2  # round trips of a step
RELAY_EXPIRE_S = 60  # a relay nobody writes to; an API process that died leaves nothing behind


async def append_step(redis: Redis, keys: Keys, stream: StreamSettings, items: Sequence[Append]) -> list[bool]:
    """Which of the events are accepted; `RequestLog.append` says what that means. Raises redis errors."""
    if not items:
        return []
    size = max(LEAST_PIECE, -(-len(items) // MOST_PIECES))
    # One after the other, and each encoded while Redis works on the one before: so the API process writes the first
    # while the last is still to come, even where all of them share one core.
    answers: list[bool] = []
    call = append_call(keys, stream, items[:size])
    for at in range(size, len(items), size):
        some, call = await asyncio.gather(_run(redis, call), _encoded(keys, stream, items[at : at + size]))
        answers += some
    return answers + await _run(redis, call)


async def _run(redis: Redis, call: Call) -> list[bool]:
    return accepted(await call.script.run(redis, call.keys, call.arguments))


def accepted(answers: Sequence[int]) -> list[bool]:
    """What the script's answer says of each event."""
    return [answer == 1 for answer in answers]


async def _encoded(keys: Keys, stream: StreamSettings, items: Sequence[Append]) -> Call:
    """`append_call`, as soon as whoever runs beside it has to wait."""
    return append_call(keys, stream, items)


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
        place = _place(keys.name, item.request_id, item.choice)
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


class _Place(NamedTuple):
    """How a choice is called in Redis."""

    record: str
    tokens: str
    member: str


@lru_cache(maxsize=4096)  # more than the sequences that a worker runs at a time
def _place(name: str, request_id: str, choice: int) -> _Place:
    keys = Keys(name)  # made here, as hashing one costs as much as the rest of the look-up
    return _Place(keys.record(request_id), keys.tokens(request_id, choice), member_of(request_id, choice))
