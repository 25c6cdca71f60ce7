"""A stream of server-sent events, one or more per token: begun here, or begun elsewhere and resumed here.

Knows ASGI and that a route has frames; knows no parameters. The headers wait for the first token, so that what fails
before it is answered with a status; what fails later is the stream's last event. A resumed stream that has nothing left
to say is answered with 204, on which a browser's EventSource stops coming back.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, aclosing

from redis.exceptions import RedisError
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.answers import StreamFrames, frames_of
from api.body_sender import BodySender
from api.disconnect import ClientLeft, while_connected
from api.errors import error_response, stream_failure
from api.frames import OutputToken
from api.generation import Departure, Generation
from api.merged import merged
from api.request_id import HEADER
from api.services import Services
from errors import RequestError

HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # or nginx collects the stream before it passes it on
}
KEEP_ALIVE = b": keep-alive\n\n"


class EventStream(Response):
    """One stream. The requests are created, or come to, when the response is sent."""

    def __init__(
        self,
        generations: Sequence[Generation],
        services: Services,
        *,
        with_ids: bool = False,
        after: int = -1,
        keep_alive_s: float = 0.0,
    ) -> None:
        """Several `generations` are those of one client's prompts, whose choices are numbered through. `with_ids`: each
        event names its index, from which the stream can be resumed; for one choice only. Nothing is sent of the tokens
        up to index `after`. `keep_alive_s`: after so long without a token a comment is sent; 0: never."""
        self._generations = generations
        self._services = services
        self._frames: StreamFrames | None = None
        self._sender: BodySender | None = None
        self._with_ids = with_ids
        self._after = after
        self._keep_alive_s = keep_alive_s
        self._heard_s = time.monotonic()
        self._num_unfinished = 1  # choices
        self._has_started = False
        self.status_code = 200
        self.background = None
        self.init_headers(HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(receive, self._send_events(scope, send))
        except ClientLeft:
            return
        except asyncio.CancelledError:  # the server's time to drain is over
            if self._with_ids:
                await self._start(send)
                await send({"type": "http.response.body", "body": b""})  # to be resumed elsewhere
                return
            if self._has_started:
                await self._end_with_error(send, "the server is stopping", 503)
            raise
        except (RequestError, RedisError) as error:
            told = stream_failure(error)
            if not self._has_started:
                await error_response(scope["path"], told)(scope, receive, send)
                return
            await self._end_with_error(send, str(told), told.status)

    @property
    def is_clear(self) -> bool:
        """See Outlet."""
        return self._has_started and self._sender is not None and self._sender.is_clear

    def write(self, tokens: Sequence[OutputToken]) -> None:
        """See Outlet; of the only choice."""
        assert self._sender is not None, "it is clear"
        piece = self._piece(tokens, 0)
        if piece:
            self._sender.write(piece)

    async def _end_with_error(self, send: Send, message: str, status: int) -> None:
        assert self._frames is not None, "what has started has frames"
        await send({"type": "http.response.body", "body": self._frames.error(message, status)})

    async def _start(self, send: Send) -> None:
        if not self._has_started:
            self._has_started = True
            headers = [*self.raw_headers]
            first = self._generations[0]
            if first.departure is Departure.LINGER:
                # Who may come back needs the true id, which is another where the given one was in use.
                headers.append((HEADER.lower().encode(), first.request.request_id.encode()))
            await send({"type": "http.response.start", "status": self.status_code, "headers": headers})

    async def _send_events(self, scope: Scope, send: Send) -> None:
        sender = self._sender = BodySender(scope, send)
        async with AsyncExitStack() as stack:
            for generation in self._generations:
                await stack.enter_async_context(generation)
            # Not before: a request gets another id where its own is in use.
            requests = [generation.request for generation in self._generations]
            self._frames = frames_of(requests, self._services)
            self._num_unfinished = sum(request.n for request in requests)
            outlet = self if self._num_unfinished == 1 else None
            sources = [
                generation.follow(choice, with_pauses=self._keep_alive_s > 0, outlet=outlet)
                for generation in self._generations
                for choice in range(generation.request.n)
            ]
            if len(sources) == 1:  # by far the most, and nothing stands between its tokens and the connection
                async for tokens in sources[0]:
                    await self._deliver(tokens, 0, sender, send)
            else:
                arriving = await stack.enter_async_context(aclosing(merged(sources)))
                async for choice, tokens in arriving:
                    await self._deliver(tokens, choice, sender, send)
            if not self._has_started:
                self.status_code = 204
                self.init_headers({})
                await self._start(send)
                await send({"type": "http.response.body", "body": b""})

    async def _deliver(self, tokens: Sequence[OutputToken], choice: int, sender: BodySender, send: Send) -> None:
        """Send what has come of a choice; no tokens in a pause."""
        if not tokens:
            await self._stay_alive(sender, send)
            return
        piece = self._piece(tokens, choice)
        self._num_unfinished -= tokens[-1].finish_reason is not None
        if not piece:
            return
        await self._start(send)
        if self._num_unfinished:
            await sender.send(piece)
        else:
            await send({"type": "http.response.body", "body": piece})

    async def _stay_alive(self, sender: BodySender, send: Send) -> None:
        if time.monotonic() >= self._heard_s + self._keep_alive_s:
            self._heard_s = time.monotonic()
            await self._start(send)
            await sender.send(KEEP_ALIVE)

    def _piece(self, tokens: Sequence[OutputToken], choice: int) -> bytes:
        """Their events, but for those that the client has."""
        assert self._frames is not None
        if self._keep_alive_s:
            self._heard_s = time.monotonic()
        frames = []
        for token in tokens:
            frame, index = self._frames.token(token, choice), token.index
            if index > self._after and frame:
                frames.append(b"id: %d\n%b" % (index, frame) if self._with_ids else frame)
        return b"".join(frames)
