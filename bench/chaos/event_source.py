"""A client as a browser's EventSource is one: it reads events with ids, and after a lost connection asks for the rest.

Knows HTTP/1.1 and SSE lines; knows nothing of what an event says, nor of clusters.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from bench.response_decoder import BadResponse, ResponseDecoder

CONNECT_TIMEOUT_S = 2.0


class ConnectionLost(Exception):
    """The connection ended before the answer did."""


class Refused(Exception):
    """Another status than 200."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"{status} {body[:300]!r}")
        self.status = status


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a stream."""

    event_id: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Address:
    """Where an API process listens."""

    host: str
    port: int


def post(path: str, body: bytes, headers: Sequence[tuple[str, str]] = ()) -> bytes:
    """A POST as bytes."""
    return (
        _head("POST", path, [*headers, ("Content-Type", "application/json"), ("Content-Length", str(len(body)))]) + body
    )


def get(path: str, headers: Sequence[tuple[str, str]] = ()) -> bytes:
    """A GET as bytes."""
    return _head("GET", path, headers)


def delete(path: str) -> bytes:
    """A DELETE as bytes."""
    return _head("DELETE", path, [])


def _head(method: str, path: str, headers: Sequence[tuple[str, str]]) -> bytes:
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: pdq",
        "Connection: close",
        *(f"{name}: {value}" for name, value in headers),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


@dataclass(slots=True)
class Connection:
    """One request's connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def open(cls, address: Address, request: bytes) -> "Connection":
        """Connect and send. Raises ConnectionLost."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                reader, writer = await asyncio.open_connection(address.host, address.port)
        except (OSError, TimeoutError) as error:
            raise ConnectionLost(f"connect: {error}") from None
        writer.write(request)
        return cls(reader, writer)

    def abort(self) -> None:
        """Close without a word, as a client that dies does."""
        self.writer.transport.abort()

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises ConnectionLost, Refused (also for 204)."""
        decoder = ResponseDecoder()
        refusal = b""
        while not decoder.is_complete:
            try:
                data = await self.reader.read(1 << 16)
                body = decoder.feed(data)
            except (OSError, BadResponse) as error:
                raise ConnectionLost(str(error)) from None
            if not data:
                decoder.feed_eof()
                if not decoder.is_complete:
                    raise ConnectionLost("the connection closed inside the answer")
            if decoder.status == 200:
                yield body
            else:
                refusal += body
                if decoder.status == 204:
                    break
        if decoder.status != 200:
            raise Refused(decoder.status or 0, refusal)

    async def events(self) -> AsyncIterator[Event]:
        """The events as they come. Raises as `pieces` does."""
        left = b""
        event_id, data = "", b""
        async for piece in self.pieces():
            *lines, left = (left + piece).split(b"\n")
            for line in lines:
                if line.startswith(b"id:"):
                    event_id = line[3:].strip().decode()
                elif line.startswith(b"data:"):
                    data = line[5:].strip()
                elif not line and data:
                    yield Event(event_id, data)
                    data = b""
