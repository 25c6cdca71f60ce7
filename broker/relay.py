"""One blocking read per API process, fanned out to the streams it serves.

Workers put every accepted event on the relay stream of the API process that waits for it. The relay may lose entries
(it is bounded, it expires, Redis may restart); the choice's own stream does not. So what arrives here is delivered
strictly by index, and whatever does not arrive is fetched from the request log. This file knows no HTTP and no text.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis

from broker.choice import member_of
from broker.client import REDIS_AWAY, Broker
from broker.subscription import Subscription
from errors import WireError
from messages.token_event import FinishReason, RelayedEvents, TokenEvent
from messages.wire import decode
from telemetry import get_logger

_BLOCK_MS = 5000
_READ_COUNT = 256
_RECONNECT_S = 0.2
_LOST_AFTER_CHECKS = 5

log = get_logger()


class RelayReader:
    """One per API process; `run` is its task."""

    def __init__(self, broker: Broker, api_id: str) -> None:
        self._reader = broker.request_reader
        self._redis: Redis = broker.blocking_redis
        self._key = broker.keys.relay(api_id)
        self._recheck_s = broker.stream_settings.recheck_s
        self._position = b"0-0"
        self._subscriptions: dict[str, list[Subscription]] = {}
        self._gap = asyncio.Event()

    def open(self, request_id: str, choice: int, after: int = -1) -> Subscription:
        """Subscribe to the choice's events of an index above `after`. Best before the request is created."""
        subscription = Subscription(request_id, choice, after)
        self._subscriptions.setdefault(member_of(request_id, choice), []).append(subscription)
        return subscription

    def close(self, subscription: Subscription) -> None:
        """Deliver nothing more to it; harmless when closed already."""
        subscription.close()
        member = member_of(subscription.request_id, subscription.choice)
        left = [other for other in self._subscriptions.get(member, []) if other is not subscription]
        if left:
            self._subscriptions[member] = left
        else:
            self._subscriptions.pop(member, None)

    @property
    def num_subscriptions(self) -> int:
        """Subscriptions not closed yet."""
        return sum(len(subscriptions) for subscriptions in self._subscriptions.values())

    async def run(self) -> None:
        """Deliver until cancelled. Outlives Redis outages."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow())
            tasks.create_task(self._recheck())

    async def _follow(self) -> None:
        """The fast path: what workers put on the relay."""
        while True:
            try:
                await self._read_on()
            except REDIS_AWAY as error:
                log.warning("relay_interrupted", error=str(error))
                await asyncio.sleep(_RECONNECT_S)

    async def _read_on(self) -> None:
        """Read until Redis is away. On a connection of its own: getting one from the pool, and a policy for retries
        around each command, cost three times what the read itself does, at every decode step."""
        pool: Any = self._redis.connection_pool
        connection = await pool.get_connection()
        try:
            entries: list[Any] = []
            while True:
                # Asked for before what came is gone through: what comes meanwhile is here when that is done.
                position = entries[-1][0] if entries else self._position
                await connection.send_command(
                    "XREAD", "COUNT", _READ_COUNT, "BLOCK", _BLOCK_MS, "STREAMS", self._key, position
                )
                self._dispatch([data for _, (_, data, *_) in entries])
                self._position = position
                entries = [entry for _, entries in await connection.read_response() or () for entry in entries]
        finally:
            await pool.release(connection)

    def _dispatch(self, entries: Sequence[bytes]) -> None:
        """Deliver what came together; together it goes on, so that who is late with many steps catches up."""
        subscriptions_of = self._subscriptions.get
        now_s = time.monotonic()
        reached: dict[Subscription, None] = {}
        for entry in entries:
            try:
                relayed = decode(entry, RelayedEvents).events
            except WireError as error:  # whoever misses something finds out
                log.error("relay_undecodable", error=str(error))
                continue
            for each in relayed:
                for subscription in subscriptions_of(each.member, ()):
                    subscription.accept(each.index, each.event, now_s)
                    reached[subscription] = None
        for subscription in reached:
            subscription.wake()
            if subscription.is_behind:
                self._gap.set()

    async def _recheck(self) -> None:
        """The safe path: gaps at once, quiet streams every `recheck_s`."""
        while True:
            try:
                async with asyncio.timeout(self._recheck_s / 4):
                    await self._gap.wait()
            except TimeoutError:
                pass
            self._gap.clear()
            try:
                await self._fill()
            except REDIS_AWAY as error:
                log.warning("relay_recheck_failed", error=str(error))
                await asyncio.sleep(_RECONNECT_S)

    async def _fill(self) -> None:
        quiet_since_s = time.monotonic() - self._recheck_s
        due = [
            subscription
            for subscriptions in self._subscriptions.values()
            for subscription in subscriptions
            if not subscription.is_ended and (subscription.is_behind or subscription.heard_s <= quiet_since_s)
        ]
        if not due:
            return
        # What comes while we read says nothing of a record that was not there before: it may just have been created.
        was_seen = [each.is_seen for each in due]
        # First whether it has ended, then what it says: an end seen here is among the events read after.
        states = await self._reader.states([(each.request_id, each.choice) for each in due])
        positions: dict[tuple[str, int], int] = {}
        for each in due:
            place = (each.request_id, each.choice)
            positions[place] = min(positions.get(place, each.next_index - 1), each.next_index - 1)
        events = await self._read(positions)
        num_filled = 0
        for subscription, state, seen in zip(due, states, was_seen, strict=True):
            subscription.heard_s = time.monotonic()
            before = subscription.next_index
            published = events[subscription.request_id, subscription.choice]
            if published is None:
                error = "the request's tokens cannot be read; are versions mixed?"
                subscription.end(TokenEvent(finish_reason=FinishReason.ERROR, error=error, error_status=500))
            for index, event in published or ():
                subscription.deliver(index, event, time.monotonic())
            num_new = subscription.next_index - before
            num_filled += num_new
            subscription.is_seen |= state.is_known
            subscription.num_unknown = 0 if state.is_known or num_new else subscription.num_unknown + 1
            is_lost = seen or state.is_known or subscription.num_unknown >= _LOST_AFTER_CHECKS
            if state.finished and not subscription.is_ended and is_lost:
                log.error("request_lost", request_id=subscription.request_id, choice=subscription.choice)
                error = "the request's record is gone from Redis"
                subscription.end(TokenEvent(finish_reason=FinishReason.ERROR, error=error, error_status=500))
        if num_filled:
            await self._rewind_if_reset()

    async def _read(
        self, positions: dict[tuple[str, int], int]
    ) -> dict[tuple[str, int], list[tuple[int, TokenEvent]] | None]:
        """What was published after the positions; None for a choice of which something cannot be read."""
        try:
            return {**await self._reader.read_many(positions)}
        except WireError:
            pass
        events: dict[tuple[str, int], list[tuple[int, TokenEvent]] | None] = {}
        for place, after in positions.items():
            try:
                events[place] = await self._reader.read(*place, after)
            except WireError as error:  # of this one alone: the others are not to wait for ever behind it
                log.error("event_undecodable", member=member_of(*place), error=str(error))
                events[place] = None
        return events

    async def _rewind_if_reset(self) -> None:
        """Events came that the relay did not bring: maybe its ids began anew, below our position."""
        last: Any = await self._redis.xrevrange(self._key, count=1)
        if last and _id_order(last[0][0]) < _id_order(self._position):
            log.warning("relay_rewound")
            self._position = b"0-0"


def _id_order(entry_id: bytes) -> tuple[int, int]:
    milliseconds, _, sequence = entry_id.partition(b"-")
    return int(milliseconds), int(sequence)
