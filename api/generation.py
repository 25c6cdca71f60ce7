"""One request's life seen from the API: create it, follow its tokens, see that it ends.

Knows the request log, the relay, the detokenizer and stop sequences; knows no HTTP and no wire form.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

import msgspec
from redis.exceptions import RedisError

from api.cancellation import end_tasks
from api.detokenizer import Detokenizer
from api.errors import aborted, failure
from api.frames import OutputToken
from api.health import needed_roles
from api.services import Services
from api.stop_matcher import StopMatcher
from broker.deadline import deadline_error, deadline_event, is_past, now_ms
from broker.relay import Subscription
from messages import FinishReason, GenerationRequest, InvalidRequest, NoWorker, QueueFull, TokenEvent
from telemetry import get_logger

log = get_logger()

QUIET_CHECK_S = 1.0  # a sequence that is quiet for this long has a look at whether anybody is left to work on it


class Generation:
    """An admitted request. Use as a context manager: entering creates it, leaving ends whatever has not ended."""

    def __init__(self, services: Services, request: GenerationRequest) -> None:
        self.request = request
        self._services = services
        self._subscriptions: dict[int, Subscription] = {}
        self._unfinished: set[int] = set()

    async def __aenter__(self) -> Self:
        """Raises InvalidRequest, QueueFull, RedisError; nothing is left behind then."""
        self._subscribe()
        try:
            await self._create_once()
        except (InvalidRequest, QueueFull):
            self._unsubscribe()
            raise
        except BaseException:  # a cancellation or a lost answer: the script may have run all the same
            await self._leave()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._leave()

    async def follow(self, choice: int) -> AsyncIterator[OutputToken]:
        """The tokens of `choice` until the one with a finish_reason. Raises RequestError when the sequence failed, or
        when nobody is left to work on it."""
        request, services = self.request, self._services
        detokenizer = Detokenizer(services.tokenizer.pieces, request.output, services.facts.eos_token_ids)
        stops = StopMatcher(request.output)
        count = 0
        while choice in self._unfinished:
            event = await self._next_event(choice)
            finish_reason = event.finish_reason
            if finish_reason is not None:
                self._unfinished.discard(choice)
            if finish_reason == FinishReason.ERROR:
                raise failure(event)
            text, special = "", True
            if event.token_id is not None:
                count += 1
                text = stops.feed(event.token_id, detokenizer.feed(event.token_id))
                special = detokenizer.is_special(event.token_id)
            if stops.is_stopped:
                if finish_reason is None:
                    await self._finish(choice, TokenEvent(finish_reason=FinishReason.STOP))
                finish_reason = FinishReason.STOP
            elif finish_reason is not None:
                text += stops.flush()
            yield OutputToken(event.token_id, text, event.logprob, special, count, finish_reason)

    async def collect(self) -> list[list[OutputToken]]:
        """The tokens of every choice. Raises RequestError when one fails."""
        tasks = [asyncio.create_task(self._collect(choice)) for choice in range(self.request.n)]
        try:
            return await asyncio.gather(*tasks)
        finally:
            await end_tasks(tasks)

    async def score(self) -> float:
        """The answer of a request of kind "score". Raises RequestError."""
        event = await self._next_event(0)
        if event.finish_reason is not None:
            self._unfinished.discard(0)
        if event.score is None:
            raise failure(event)
        return event.score

    async def _collect(self, choice: int) -> list[OutputToken]:
        return [token async for token in self.follow(choice)]

    async def _next_event(self, choice: int) -> TokenEvent:
        subscription = self._subscriptions[choice]
        settings = self._services.settings.api
        roles = needed_roles(self._services.facts.is_reward)
        quiet_since = time.monotonic()
        while True:
            try:
                async with asyncio.timeout(self._patience_s()):
                    _, event = await subscription.get()
                return event
            except TimeoutError:
                if is_past(self.request, now_ms()):
                    await self._finish(choice, deadline_event(self.request))
                    raise deadline_error(self.request) from None
                role, absent_s = self._services.view.longest_absent(roles)
                quiet_s = time.monotonic() - quiet_since
                # Quiet as well as absent: one worker of the other role may still be streaming.
                if min(absent_s, quiet_s) < settings.no_worker_timeout_s:
                    continue
                error = NoWorker(f"no live {role} worker for {settings.no_worker_timeout_s:g} s (Status code: 503)")
                event = TokenEvent(finish_reason=FinishReason.ERROR, error=str(error), error_status=error.status)
                await self._finish(choice, event)
                raise error from None

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
        # In a task of its own, so that no second cancellation can stop the workers from hearing of it.
        await asyncio.shield(asyncio.create_task(self._abort_unfinished()))

    async def _abort_unfinished(self) -> None:
        self._unsubscribe()
        open_choices = list(self._unfinished)
        if open_choices:
            log.info("request_aborted", request_id=self.request.request_id, choices=len(open_choices))
        await asyncio.gather(*(self._finish(choice, aborted()) for choice in open_choices))

    async def _create_once(self) -> None:
        try:
            await self._create()
        except InvalidRequest:  # the id is in use
            await self._create_under_another_id()

    async def _create(self) -> None:
        await self._services.gate.create(self.request)

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
