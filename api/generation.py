"""One request's life seen from the API: create it or come to it, follow its tokens, see that it ends.

Knows the request log, the relay, and what a departing reader leaves behind; knows no HTTP and no wire form.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from enum import Enum
from types import TracebackType
from typing import Protocol, Self

import msgspec
from redis.exceptions import RedisError

from api.cancellation import end_tasks
from api.errors import UnknownRequest, aborted
from api.frames import OutputToken
from api.health import needed_roles
from api.measurement import LEFT, Measurement
from api.output import Output
from api.services import Services
from broker.deadline import deadline_error, deadline_event, is_past, now_ms
from broker.request_log import CancelIf
from broker.subscription import Subscription
from errors import InvalidRequest, NoWorker, QueueFull, RequestError
from messages.request import GenerationRequest
from messages.token_event import FinishReason, TokenEvent
from telemetry import get_logger

log = get_logger()

QUIET_CHECK_S = 1.0  # a sequence that is quiet for this long has a look at whether anybody is left to work on it


class Departure(Enum):
    """What becomes of a request that has not ended when its reader leaves."""

    CANCEL = "cancel"  # it ends, unless another reader has come to it
    LINGER = "linger"  # it goes on: its client may come back within stream.reconnect_s, or it is detached
    FORGET = "forget"  # somebody else sees to it


class Outlet(Protocol):
    """Where a choice's tokens can go with nothing to wait for."""

    @property
    def is_clear(self) -> bool:
        """Whether they can now."""

    def write(self, tokens: list[OutputToken]) -> None:
        """Here are some, of which none is the last."""


class Generation:
    """An admitted request as one reader sees it. Use as a context manager: entering creates it, or begins to read one
    that runs already; leaving does what `departure` says."""

    def __init__(
        self,
        services: Services,
        request: GenerationRequest,
        departure: Departure = Departure.CANCEL,
        *,
        is_begun: bool = False,
        images: Mapping[bytes, bytes] | None = None,
    ) -> None:
        """`images`: the bytes of the request's images by digest, of one that is to be created."""
        # Who comes to it later measures nothing, or it would be counted twice.
        self._measurement = (
            None if is_begun else Measurement(services.meters, services.tracing, request, services.facts.name)
        )
        self.request = request if self._measurement is None else self._measurement.request
        self.departure = departure
        self._is_begun = is_begun
        self._services = services
        self._images = images or {} if request.images else {}
        self._subscriptions: dict[int, Subscription] = {}
        self._unfinished: set[int] = set()
        self._is_read = False

    async def __aenter__(self) -> Self:
        """Raises InvalidRequest, QueueFull, UnknownRequest, RedisError; nothing is left behind then."""
        self._subscribe()
        try:
            await (self._attach() if self._is_begun else self._create_once())
        except (InvalidRequest, QueueFull, UnknownRequest) as error:
            self._unsubscribe()
            if self._measurement is not None:
                self._measurement.refused(error)
            raise
        except BaseException:  # a cancellation or a lost answer: the script may have run all the same
            await self._leave()
            raise
        if self._measurement is not None:
            self._measurement.created(self.request)
        self._images = {}  # Redis has them
        # Nobody reads what a mere follower follows; but a detached request needs no other reader.
        if self.departure is not Departure.FORGET or self.request.is_detached:
            self._services.readings.begin(self.request.request_id)
            self._is_read = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._leave()

    async def follow(
        self, choice: int, *, with_pauses: bool = False, outlet: Outlet | None = None
    ) -> AsyncIterator[list[OutputToken]]:
        """The tokens of `choice` from index 0 until the one with a finish_reason, as many at a time as have come;
        `with_pauses`: and none at all about every QUIET_CHECK_S in which none come. What comes while `outlet` is clear
        goes there and not to the caller, but for what may be the end.
        Raises RequestError when the sequence failed, or when nobody is left to work on it."""
        services = self._services
        output = Output(services.tokenizer, services.facts, self.request.output)
        measurement, subscription = self._measurement, self._subscriptions[choice]

        def write_at_once(events: list[TokenEvent]) -> float | None:
            # Within the delivery of the events: waking a task for each choice costs more than all that it does.
            if outlet is None or not outlet.is_clear or events[-1].finish_reason is not None:
                return None
            tokens = [output.feed(event) for event in events]
            came_s = subscription.came_s
            if measurement is not None:
                measurement.came(choice, len(tokens), came_s)
            outlet.write(tokens)
            if measurement is not None:
                measurement.relayed(len(tokens), came_s)
            return self._patience_s()

        # A stop sequence may be complete at any token, and its end has to be told to Redis first.
        shortcut = None if outlet is None or output.may_stop else write_at_once
        quiet_since = time.monotonic()
        while choice in self._unfinished:
            tokens: list[OutputToken] = []
            failure: RequestError | None = None
            try:
                events = await subscription.take(self._patience_s(), shortcut)
            except TimeoutError:
                await self._look_around(choice, max(quiet_since, subscription.came_s))
                if with_pauses:
                    yield []
                continue
            quiet_since = time.monotonic()
            came_s = subscription.came_s
            for event in events:
                if event.finish_reason is not None:
                    self._unfinished.discard(choice)
                try:
                    tokens.append(output.feed(event))
                except RequestError as error:
                    failure = error
                    break
                if tokens[-1].finish_reason is not None:
                    break
            # The last event may have no token.
            num_tokens = len(tokens) - (1 if tokens and tokens[-1].token_id is None else 0)
            if measurement is not None and num_tokens:
                measurement.came(choice, num_tokens, came_s)
            if tokens and choice in self._unfinished and tokens[-1].finish_reason is not None:
                *before, last = tokens
                if before:
                    yield before
                await self._finish(choice, TokenEvent(finish_reason=last.finish_reason))
                tokens = [last]
            if tokens:
                yield tokens
            if measurement is not None:
                if num_tokens:
                    measurement.relayed(num_tokens, came_s)
                if failure is not None:
                    measurement.ended(choice, FinishReason.ERROR)
                elif (reason := tokens[-1].finish_reason) is not None:
                    measurement.ended(choice, reason)
            if failure is not None:
                raise failure

    async def collect(self) -> list[list[OutputToken]]:
        """The tokens of every choice. Raises RequestError when one fails."""
        tasks = [asyncio.create_task(self._collect(choice)) for choice in range(self.request.n)]
        try:
            return await asyncio.gather(*tasks)
        finally:
            await end_tasks(tasks)

    async def score(self) -> TokenEvent:
        """The one event of a request of kind "score"."""
        event, *_ = await self._next_events(0)
        if event.finish_reason is not None:
            self._unfinished.discard(0)
            if self._measurement is not None:
                self._measurement.ended(0, event.finish_reason)
        return event

    async def _collect(self, choice: int) -> list[OutputToken]:
        return [token async for tokens in self.follow(choice) for token in tokens]

    async def _next_events(self, choice: int) -> list[TokenEvent]:
        subscription = self._subscriptions[choice]
        quiet_since = time.monotonic()
        while True:
            try:
                return await subscription.take(self._patience_s())
            except TimeoutError:
                await self._look_around(choice, quiet_since)

    async def _look_around(self, choice: int, quiet_since: float) -> None:
        """Nothing has come for a while. Raises RequestError when nothing will."""
        services = self._services
        if is_past(self.request, now_ms()):
            await self._finish(choice, deadline_event(self.request))
            self._note_failure(choice)
            raise deadline_error(self.request)
        role, absent_s = services.view.longest_absent(needed_roles(services.facts.is_reward))
        quiet_s = time.monotonic() - quiet_since
        no_worker_timeout_s = services.settings.api.no_worker_timeout_s
        # Quiet as well as absent: one worker of the other role may still be streaming.
        if min(absent_s, quiet_s) >= no_worker_timeout_s:
            error = NoWorker(
                f"no live {role} worker for {no_worker_timeout_s:g} s (Status code: 503): `pdq {role}` starts one, and "
                f"PDQ_API__NO_WORKER_TIMEOUT_S={2 * no_worker_timeout_s:g} has requests wait longer"
            )
            event = TokenEvent(finish_reason=FinishReason.ERROR, error=str(error), error_status=error.status)
            await self._finish(choice, event)
            self._note_failure(choice)
            raise error

    def _note_failure(self, choice: int) -> None:
        if self._measurement is not None:
            self._measurement.ended(choice, FinishReason.ERROR)

    def _patience_s(self) -> float:
        """Until there is something to look at: the deadline, or who is left."""
        if not self.request.deadline_ms:
            return QUIET_CHECK_S
        # A millisecond more: at the very deadline it is not past.
        return min(QUIET_CHECK_S, max(0.0, (self.request.deadline_ms + 1 - now_ms()) / 1000))

    async def _finish(self, choice: int, event: TokenEvent) -> None:
        """End `choice` from our side. A Redis that is away costs wasted work, not the answer."""
        request_id = self.request.request_id
        try:
            await self._services.broker.requests.finish(request_id, choice, event)
        except RedisError as error:
            log.warning("finish_failed", request_id=request_id, choice=choice, reason=type(error).__name__)
        # Only now: when the client leaves during the call, `_leave` repeats it.
        self._unfinished.discard(choice)

    async def _leave(self) -> None:
        self._unsubscribe()
        if self._measurement is not None:
            self._measurement.closed(LEFT if self.departure is Departure.LINGER else FinishReason.ABORT)
        if self._is_read:
            self._is_read = False
            self._services.readings.end(self.request.request_id)
        if self._unfinished and self.departure is not Departure.FORGET:
            # In a task of its own, so that no second cancellation can stop the workers from hearing of it.
            await asyncio.shield(asyncio.create_task(self._depart()))

    async def _depart(self) -> None:
        services, request_id = self._services, self.request.request_id
        try:
            if self.departure is Departure.LINGER:
                services.background.start(follow_unattended(services, self.request))
                await services.broker.readers.renew([request_id])
            else:
                choices = await services.broker.requests.cancel(self.request, aborted(), CancelIf.UNATTACHED)
                log.info("request_aborted", request_id=request_id, choices=len(choices))
        except RedisError as error:  # its lease runs out
            log.warning("departure_failed", request_id=request_id, reason=type(error).__name__)

    async def _attach(self) -> None:
        """Read what was published, from the first event on; from now on the relay brings what comes."""
        broker, request = self._services.broker, self.request
        if not await broker.readers.attach(request, self._services.api_id):
            raise UnknownRequest(f"request id {request.request_id!r} is not known")
        events = await broker.request_reader.read_many(
            {(request.request_id, choice): -1 for choice in range(request.n)}
        )
        for choice, subscription in self._subscriptions.items():
            for index, event in events[request.request_id, choice]:
                subscription.deliver(index, event, time.monotonic())

    async def _create_once(self) -> None:
        try:
            await self._create()
        except InvalidRequest:  # the id is in use
            await self._create_under_another_id()

    async def _create(self) -> None:
        await self._services.gate.create(self.request, self._images)

    async def _create_under_another_id(self) -> None:
        """A client may send the same X-Request-Id again and again; LightLLM's do."""
        self._unsubscribe()
        self.request = msgspec.structs.replace(
            self.request, request_id=f"{self.request.request_id}-{uuid.uuid4().hex[:8]}"
        )
        self._subscribe()
        await self._create()

    def _subscribe(self) -> None:
        # Before the request exists, so that no event can be missed.
        relay, request_id = self._services.relay, self.request.request_id
        self._subscriptions = {choice: relay.open(request_id, choice) for choice in range(self.request.n)}
        self._unfinished = set(self._subscriptions)

    def _unsubscribe(self) -> None:
        for subscription in self._subscriptions.values():
            self._services.relay.close(subscription)
        self._subscriptions = {}


async def follow_unattended(services: Services, request: GenerationRequest) -> None:
    """Follow a request that nobody reads, so that it ends at its stop sequences all the same."""
    try:
        async with Generation(services, request, Departure.FORGET, is_begun=True) as generation:
            await (generation.score() if request.kind == "score" else generation.collect())
    except RequestError:
        pass  # its end is in its record
    except RedisError as error:
        log.warning("unattended_lost", request_id=request.request_id, reason=type(error).__name__)
