"""A stream of server-sent events, one per token: begun here, or begun elsewhere and resumed here.

Knows ASGI and that a route has frames; knows no parameters. The headers wait for the first token, so that what fails
before it is answered with a status; what fails later is the stream's last event. A resumed stream that has nothing left
to say is answered with 204, on which a browser's EventSource stops coming back.
"""

import asyncio
from collections.abc import Sequence

from redis.exceptions import RedisError
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.answers import StreamFrames
from api.body_sender import BodySender
from api.disconnect import ClientLeft, while_connected
from api.errors import error_response, stream_failure
from api.frames import OutputToken
from api.generation import Departure, Generation
from api.request_id import HEADER
from messages import RequestError

HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # or nginx collects the stream before it passes it on
}


class EventStream(Response):
    """One stream. The request is created, or come to, when the response is sent."""

    def __init__(
        self, generation: Generation, frames: StreamFrames, *, with_ids: bool = False, after: int = -1
    ) -> None:
        """`with_ids`: each event names its index, from which the stream can be resumed. Nothing is sent of the tokens
        up to index `after`."""
        self._generation = generation
        self._frames = frames
        self._with_ids = with_ids
        self._after = after
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
                await send({"type": "http.response.body", "body": self._frames.error("the server is stopping")})
            raise
        except (RequestError, RedisError) as error:
            told = stream_failure(error)
            if not self._has_started:
                await error_response(told)(scope, receive, send)
                return
            await send({"type": "http.response.body", "body": self._frames.error(str(told))})

    async def _start(self, send: Send) -> None:
        if not self._has_started:
            self._has_started = True
            headers = [*self.raw_headers]
            if self._generation.departure is Departure.LINGER:
                # Who may come back needs the true id, which is another where the given one was in use.
                headers.append((HEADER.lower().encode(), self._generation.request.request_id.encode()))
            await send({"type": "http.response.start", "status": self.status_code, "headers": headers})

    async def _send_events(self, scope: Scope, send: Send) -> None:
        sender = BodySender(scope, send)
        async with self._generation as generation:
            async for tokens in generation.follow(0):
                piece = self._piece(tokens)
                if not piece:
                    continue
                await self._start(send)
                if tokens[-1].finish_reason is None:
                    await sender.send(piece)
                else:
                    await send({"type": "http.response.body", "body": piece})
            if not self._has_started:
                self.status_code = 204
                self.init_headers({})
                await self._start(send)
                await send({"type": "http.response.body", "body": b""})

    def _piece(self, tokens: Sequence[OutputToken]) -> bytes:
        """Their events, but for those that the client has."""
        frames = []
        for token in tokens:
            frame, index = self._frames.token(token), token.index
            if index > self._after:
                frames.append(b"id: %d\n%b" % (index, frame) if self._with_ids else frame)
        return b"".join(frames)
