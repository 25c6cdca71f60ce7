"""One id per request, in logs, in Redis and on the response.

Pure ASGI. A client's X-Request-Id is taken when it is harmless as a key and a log field; otherwise one is drawn.
"""

import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "X-Request-Id"
_HARMLESS = re.compile(r"[A-Za-z0-9._-]{1,128}")


class RequestId:
    """Middleware: puts the id into `scope["pdq.request_id"]` and on every response that does not name one itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

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
            await send(message)

        await self._app(scope, receive, send_with_id)
