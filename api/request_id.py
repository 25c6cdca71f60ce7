"""One id per request, in logs, in Redis and on the response; and how many responses there were.

Pure ASGI. Every line that is logged while it is answered has the id. A client's
X-Request-Id is taken when it is harmless as a key and a log field; otherwise one is drawn.
"""

import re
import uuid
from collections import Counter

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

HEADER = "X-Request-Id"
_HARMLESS = re.compile(r"[A-Za-z0-9._-]{1,128}")


class RequestId:
    """Middleware: puts the id into `scope["pdq.request_id"]` and on every response that does not name one itself."""

    def __init__(self, app: ASGIApp, responses: Counter[tuple[str, str]]) -> None:
        """`responses` counts them, by the path of their route and by status."""
        self._app, self._responses = app, responses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        request_id = given if _HARMLESS.fullmatch(given) else uuid.uuid4().hex
        scope["pdq.request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).setdefault(HEADER, request_id)
                # The route's path, not the request's, which may be anything.
                path = getattr(scope.get("route"), "path", "other")
                self._responses[path, str(message["status"])] += 1
            await send(message)

        with bound_contextvars(request_id=request_id):
            await self._app(scope, receive, send_with_id)
