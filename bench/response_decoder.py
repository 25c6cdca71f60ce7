"""HTTP/1.1 response bytes -> status and body bytes, as they come in.

Written by hand because the client shares its cores with the servers it measures: a general parser spends several times
as much on every token. Pure: no sockets, no clock; it knows nothing of SSE.
"""

from enum import Enum, auto

MAX_HEAD_BYTES = 64 << 10
MAX_LINE_BYTES = 4096


class BadResponse(ValueError):
    """Bytes that are no HTTP/1.1 response."""


class _State(Enum):
    HEAD = auto()
    LENGTH = auto()  # a body with content-length
    UNTIL_EOF = auto()  # a body that ends with the connection
    CHUNK_SIZE = auto()
    CHUNK_DATA = auto()
    CHUNK_END = auto()  # the CRLF after a chunk
    TRAILER = auto()
    DONE = auto()


class ResponseDecoder:
    """Decodes one response. `feed` what arrives; `feed_eof` when the connection closes."""

    def __init__(self) -> None:
        self.status: int | None = None
        self._state = _State.HEAD
        self._buffer = b""
        self._left = 0  # bytes left of the chunk or body

    @property
    def is_complete(self) -> bool:
        """Whether the whole response has arrived; a cut connection leaves it false."""
        return self._state is _State.DONE

    def feed(self, data: bytes) -> bytes:
        """The body bytes that `data` completes. Raises BadResponse."""
        self._buffer += data
        body: list[bytes] = []
        while self._step(body):
            pass
        return body[0] if len(body) == 1 else b"".join(body)

    def feed_eof(self) -> None:
        """The connection has closed."""
        if self._state is _State.UNTIL_EOF:
            self._state = _State.DONE

    def _step(self, body: list[bytes]) -> bool:
        """Consumes one element of the buffer; False when more bytes are needed."""
        match self._state:
            case _State.HEAD:
                return self._read_head()
            case _State.LENGTH | _State.CHUNK_DATA:
                return self._read_data(body)
            case _State.UNTIL_EOF:
                if self._buffer:
                    body.append(self._buffer)
                    self._buffer = b""
                return False
            case _State.CHUNK_SIZE:
                line = self._take_line()
                if line is None:
                    return False
                size = line.split(b";", 1)[0].strip()
                if not size or size.strip(b"0123456789abcdefABCDEF"):
                    raise BadResponse(f"chunk size {line[:40]!r}")
                self._left = int(size, 16)
                self._state = _State.CHUNK_DATA if self._left else _State.TRAILER
                return True
            case _State.CHUNK_END:
                line = self._take_line()
                if line is None:
                    return False
                if line:
                    raise BadResponse(f"chunk is followed by {line[:40]!r}")
                self._state = _State.CHUNK_SIZE
                return True
            case _State.TRAILER:
                line = self._take_line()
                if line == b"":
                    self._state = _State.DONE
                return line is not None
            case _State.DONE:
                return False

    def _read_data(self, body: list[bytes]) -> bool:
        if not self._buffer:
            return False
        piece, self._buffer = self._buffer[: self._left], self._buffer[self._left :]
        self._left -= len(piece)
        body.append(piece)
        if self._left == 0:
            self._state = _State.DONE if self._state is _State.LENGTH else _State.CHUNK_END
        return True

    def _take_line(self) -> bytes | None:
        line, end, rest = self._buffer.partition(b"\r\n")
        if not end:
            if len(line) > MAX_LINE_BYTES:
                raise BadResponse("line too long")
            return None
        self._buffer = rest
        return line

    def _read_head(self) -> bool:
        head, end, rest = self._buffer.partition(b"\r\n\r\n")
        if not end:
            if len(head) > MAX_HEAD_BYTES:
                raise BadResponse("response head too long")
            return False
        lines = head.split(b"\r\n")
        parts = lines[0].split(b" ", 2)
        if not parts[0].startswith(b"HTTP/1.") or len(parts) < 2 or not parts[1].isdigit():
            raise BadResponse(f"status line {lines[0][:40]!r}")
        self._buffer = rest
        status = int(parts[1])
        if status < 200:
            return True  # an interim response (100 Continue); the real one follows
        self.status = status
        headers = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines[1:])
        }
        length = headers.get(b"content-length")
        if b"chunked" in headers.get(b"transfer-encoding", b"").lower():
            self._state = _State.CHUNK_SIZE
        elif length is not None:
            if not length.isdigit():
                raise BadResponse(f"content-length {length[:40]!r}")
            self._left = int(length)
            self._state = _State.LENGTH if self._left else _State.DONE
        else:
            self._state = _State.UNTIL_EOF
        return True
