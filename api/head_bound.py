"""How large a request's head may be.

Pure ASGI. h11 bounds only heads that have not ended yet: a large one that comes in one read gets through it to here.
"""

from starlette.types import ASGIApp, Receive, Scope, Send

from api.errors import message_response

_PER_HEADER = len(": \r\n")


def head_bytes(scope: Scope) -> int:
    """Bytes of the request's target and headers, about as they were on the wire."""
    headers = sum(len(name) + len(value) + _PER_HEADER for name, value in scope["headers"])
    return len(scope["path"]) + len(scope["query_string"]) + headers


class HeadBound:
    """Middleware: answers 431 to a head of more than `max_bytes`."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan" and (size := head_bytes(scope)) > self._max_bytes:
            answer = message_response(
                scope["path"], 431, f"request head has {size} bytes, at most {self._max_bytes} are allowed"
            )
            await answer(scope, receive, send)
            return
        await self._app(scope, receive, send)
