"""The pieces of a streamed body, straight to the connection.

Every piece through ASGI takes some ten calls that can do nothing with it: the wrappers of each layer look for the
response's start, and h11 checks a state that does not change between two pieces. On 64 streams that is a third of what
a token costs. So the start and the end go through all of them, and what is between goes past them where the server is
ours and the peer speaks HTTP/1.1, which has chunks. Knows uvicorn's cycle; knows nothing of what is in a piece.
"""

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import RequestResponseCycle

_SERVERS_SEND = "pdq.servers_send"


class KnowingServer:
    """Middleware, around everything else: remembers how the server itself sends."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[_SERVERS_SEND] = send
        await self._app(scope, receive, send)


class BodySender:
    """Of one response that has no content-length. Its start and its end are the caller's to send."""

    def __init__(self, scope: Scope, send: Send) -> None:
        cycle = getattr(scope.get(_SERVERS_SEND), "__self__", None)
        is_chunked = isinstance(cycle, RequestResponseCycle) and scope["http_version"] == "1.1"
        self._cycle: RequestResponseCycle | None = cycle if is_chunked and scope["method"] != "HEAD" else None
        self._send = send

    @property
    def is_clear(self) -> bool:
        """Whether the next piece may be `write`n: nothing has to be waited for."""
        cycle = self._cycle
        return cycle is not None and not cycle.flow.write_paused

    async def send(self, piece: bytes) -> None:
        """Send a piece that is not empty and not the last. Waits while the client does not read."""
        cycle = self._cycle
        if cycle is None:
            await self._send({"type": "http.response.body", "body": piece, "more_body": True})
            return
        if cycle.flow.write_paused and not cycle.disconnected:
            await cycle.flow.drain()
        self.write(piece)

    def write(self, piece: bytes) -> None:
        """`send` where the way is clear."""
        cycle = self._cycle
        assert cycle is not None, "the way is not clear"
        if not cycle.disconnected:
            cycle.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))
