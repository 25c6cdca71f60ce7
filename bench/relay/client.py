"""Many SSE streams read with as little CPU as Python can: one epoll, one read and one clock per piece that arrives.

Nothing is parsed while it measures; stream_bytes.py does that afterwards.
"""

import select
import socket
import time
from collections.abc import Callable

from bench.relay.stream_bytes import Reads, is_begun, is_whole
from errors import PdqError

_READ_BYTES = 1 << 16
_POLL_S = 0.2


class StreamsLost(PdqError):
    """The streams did not come, or stood still."""


class Streams:
    """Connections to one API process, each with one request."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._poll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._reads: dict[int, list[tuple[int, bytes]]] = {}
        self._open: set[int] = set()

    def begin(self, request: bytes) -> None:
        """One stream more."""
        connection = socket.create_connection(("127.0.0.1", self._port))
        connection.sendall(request)
        connection.setblocking(False)
        descriptor = connection.fileno()
        self._sockets[descriptor] = connection
        self._reads[descriptor] = []
        self._open.add(descriptor)
        self._poll.register(descriptor, select.EPOLLIN)

    def read_until(self, condition: Callable[[], bool], quiet_s: float) -> None:
        """Read what comes until `condition`. Raises StreamsLost when nothing comes for `quiet_s` before that."""
        give_up_at = time.monotonic() + quiet_s
        while not condition():
            if self.read():
                give_up_at = time.monotonic() + quiet_s
            elif time.monotonic() > give_up_at:
                raise StreamsLost(f"nothing came for {quiet_s:g} s; {len(self._open)} streams are open")

    def read(self) -> bool:
        """Wait shortly for what comes, and read it; whether anything came."""
        reads, sockets, clock = self._reads, self._sockets, time.monotonic_ns
        events = self._poll.poll(_POLL_S)
        for descriptor, _ in events:
            try:
                data = sockets[descriptor].recv(_READ_BYTES)
            except ConnectionError:
                data = b""
            reads[descriptor].append((clock(), data))
            if not data or is_whole(data):
                self._poll.unregister(descriptor)
                self._open.discard(descriptor)
        return bool(events)

    @property
    def num_answered(self) -> int:
        """Streams of which something has arrived."""
        return sum(1 for reads in self._reads.values() if reads)

    def check_begun(self) -> None:
        """Raises StreamsLost when one was refused."""
        for reads in self._reads.values():
            if not is_begun(reads[0][1]):
                raise StreamsLost(f"a stream was refused: {reads[0][1][:300]!r}")

    @property
    def all_ended(self) -> bool:
        """Whether no stream is open any more."""
        return not self._open

    @property
    def reads(self) -> list[Reads]:
        """Of each stream, what was read and when."""
        return list(self._reads.values())

    def close(self) -> None:
        """Hang up."""
        for connection in self._sockets.values():
            connection.close()
        self._poll.close()
