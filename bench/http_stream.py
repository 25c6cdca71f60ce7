"""One POST on its own connection, its SSE lines delivered in the moment they arrive.

Callbacks run inside `data_received`: no task switch lies between the socket and the time stamp. This file knows HTTP
and `data:` lines; it must not know what a frame means.
"""

import asyncio
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

from bench.response_decoder import BadResponse, ResponseDecoder
from errors import ConfigError

MAX_ERROR_BODY_BYTES = 2000
CRLF = "\r\n"

OnData = Callable[[bytes, float], None]  # (what follows `data:`, time.perf_counter() of its arrival)


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go. `address` is resolved once, so that no lookup falls into a measured time."""

    address: str
    port: int
    host_header: str
    path: str
    tls_name: str | None = None  # None: plain HTTP
    api_key: str = field(default="", repr=False)

    def head(self, body: bytes) -> bytes:
        """The request head. One request per connection: every client here is a new one."""
        return (
            f"POST {self.path} HTTP/1.1\r\nHost: {self.host_header}\r\nContent-Type: application/json\r\n"
            f"{f'Authorization: Bearer {self.api_key}' + CRLF if self.api_key else ''}"
            f"Accept: text/event-stream\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode("ascii")


@dataclass(frozen=True, slots=True)
class Answer:
    """How an exchange ended."""

    status: int | None  # None: no response head came
    is_complete: bool  # the whole response arrived
    body: bytes = b""  # the start of the body when the status is not 200
    timed_out: bool = False
    bad_response: str = ""  # why the bytes are no HTTP


async def resolve(url: str, path: str, api_key: str = "") -> Target:
    """The target of `url` + `path`; of several addresses, the first that accepts a connection. Raises ConfigError."""
    if not (api_key.isascii() and api_key.isprintable()):
        raise ConfigError("--api-key: holds a character that no header may have")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"--url {url!r}: must look like http://HOST:PORT")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    tls_name = parts.hostname if parts.scheme == "https" else None
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(parts.hostname, port, type=1)  # 1: SOCK_STREAM
    except OSError as error:
        raise ConfigError(f"--url {url!r}: {error}") from None
    addresses = [str(entry[4][0]) for entry in found]
    address = addresses[0]
    for candidate in addresses if len(addresses) > 1 else []:
        try:
            _, writer = await asyncio.open_connection(candidate, port)
        except OSError:
            continue
        writer.close()
        address = candidate
        break
    host_header = parts.netloc.rpartition("@")[2]
    return Target(address, port, host_header, parts.path.rstrip("/") + path, tls_name, api_key)


async def post_stream(target: Target, body: bytes, on_data: OnData, idle_timeout_s: float) -> Answer:
    """POSTs `body` and calls `on_data` for each `data:` line of a 200 answer.

    Ends when the response is complete, the connection is lost, or nothing arrives for `idle_timeout_s`. Raises OSError
    when no connection can be made.
    """
    loop = asyncio.get_running_loop()
    context = ssl.create_default_context() if target.tls_name else None
    protocol = _StreamProtocol(loop, target.head(body) + body, on_data)
    try:
        async with asyncio.timeout(idle_timeout_s):
            transport, _ = await loop.create_connection(
                lambda: protocol, target.address, target.port, ssl=context, server_hostname=target.tls_name
            )
    except TimeoutError:
        return Answer(None, False, timed_out=True)
    try:
        return await protocol.wait(idle_timeout_s)
    finally:
        transport.abort()  # the answer is whole or of no use; nothing is left to flush


class _StreamProtocol(asyncio.Protocol):
    """Sends the request on connecting, decodes what comes back."""

    def __init__(self, loop: asyncio.AbstractEventLoop, request: bytes, on_data: OnData) -> None:
        self._loop = loop
        self._request = request
        self._on_data = on_data
        self._decoder = ResponseDecoder()
        self._line = b""  # the start of a line whose end has not arrived
        self._error_body = b""
        self._bad_response = ""
        self._last_data_s = loop.time()
        self._ended: asyncio.Future[None] = loop.create_future()

    async def wait(self, idle_timeout_s: float) -> Answer:
        """The answer, once it has ended."""
        self._last_data_s = self._loop.time()
        timed_out = False
        while not self._ended.done():
            # One sleeping timer instead of one re-armed per token.
            left_s = self._last_data_s + idle_timeout_s - self._loop.time()
            if left_s <= 0:
                timed_out = True
                break
            await asyncio.wait([self._ended], timeout=left_s)
        decoder = self._decoder
        return Answer(decoder.status, decoder.is_complete, self._error_body, timed_out, self._bad_response)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.WriteTransport, transport).write(self._request)  # uvloop's is no subclass of asyncio's

    def data_received(self, data: bytes) -> None:
        now_s = time.perf_counter()
        if self._ended.done():
            return
        self._last_data_s = self._loop.time()
        try:
            body = self._decoder.feed(data)
        except BadResponse as error:
            self._bad_response = str(error)
            self._end()
            return
        if self._decoder.status == 200:
            *lines, self._line = (self._line + body).split(b"\n")
            for line in lines:
                if line.startswith(b"data:"):
                    self._on_data(line[5:].strip(), now_s)
        elif len(self._error_body) < MAX_ERROR_BODY_BYTES:
            self._error_body = (self._error_body + body)[:MAX_ERROR_BODY_BYTES]
        if self._decoder.is_complete:
            self._end()

    def connection_lost(self, error: Exception | None) -> None:
        if error is None:
            self._decoder.feed_eof()
        self._end()

    def _end(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)
