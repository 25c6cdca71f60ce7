"""The answer of /generate_stream: a server-sent event per token.

Knows ASGI and frames; knows no parameters. The headers wait for the first token, so that what fails before it is
answered with a status; what fails later is the stream's last event.
"""

import asyncio

from redis.exceptions import RedisError
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.disconnect import ClientLeft, while_connected
from api.errors import error_response, stream_failure
from api.frames import error_frame, stream_frame
from api.generation import Generation
from messages import RequestError

HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # or nginx collects the stream before it passes it on
}


class EventStream(Response):
    """One stream. The request is created when the response is sent."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._has_started = False
        self.status_code = 200
        self.background = None
        self.init_headers(HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(receive, self._send_events(send))
        except ClientLeft:
            return
        except asyncio.CancelledError:  # the server's time to drain is over
            if self._has_started:
                await send({"type": "http.response.body", "body": error_frame("the server is stopping")})
            raise
        except (RequestError, RedisError) as error:
            told = stream_failure(error)
            if not self._has_started:
                await error_response(told)(scope, receive, send)
                return
            await send({"type": "http.response.body", "body": error_frame(str(told))})

    async def _send_events(self, send: Send) -> None:
        async with self._generation as generation:
            prompt_tokens = len(generation.request.prompt_token_ids)
            async for token in generation.follow(0):
                if not self._has_started:
                    self._has_started = True
                    await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                is_last = token.finish_reason is not None
                body = stream_frame(token, prompt_tokens)
                await send({"type": "http.response.body", "body": body, "more_body": not is_last})
