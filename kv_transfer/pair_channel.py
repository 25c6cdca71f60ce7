"""What two paired workers say to each other beside the blocks.

A pair has a TCP connection of its own. It carries the requests and their answers, so that an idle pair waits for a
message and not inside a process group; its end says that the peer is gone; and it is what the group finds its peer by.

A frame is a length of 4 bytes and a message in msgpack. Whoever holds the token of the owner's address may speak; what
comes is checked for size and form here, and for sense by who asked for it. Knows no pool and no process group.
"""

import select
import socket
import struct
import time
from typing import TypeVar

import msgspec

from errors import KVTransferFailed
from messages.kv_transfer import KVHandle

_LENGTH = struct.Struct("!I")
_MAX_FRAME_BYTES = 1 << 20  # a handle of 100,000 blocks
# A peer whose host vanished says nothing; the kernel asks after it while nobody else speaks.
_KEEPALIVE = {socket.TCP_KEEPIDLE: 10, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 3}


class Hello(msgspec.Struct, frozen=True, array_like=True, tag="hello"):
    """Puller -> owner, first of all."""

    token: bytes  # of the owner's address


class StoreEntry(msgspec.Struct, frozen=True, array_like=True, tag="entry"):
    """What a process group sets in its store."""

    key: str
    value: bytes


class Request(msgspec.Struct, frozen=True, array_like=True, tag="request"):
    """Puller -> owner: send these blocks."""

    handle: KVHandle
    max_blocks: int  # in one message of the group


class Answer(msgspec.Struct, frozen=True, array_like=True, tag="answer"):
    """Owner -> puller: to the hello and to a request before the blocks, and after them whether the offer stood."""

    refusal: str = ""  # empty: yes
    is_gone: bool = False  # the offer does not stand, however one asks
    max_blocks: int = 0  # in one message of the group, at most the request's
    checksum: int | None = None  # after the blocks: what the owner says that they hold, if the handle promises it


ChannelMessage = Hello | StoreEntry | Request | Answer
MessageT = TypeVar("MessageT", bound=ChannelMessage)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[ChannelMessage] = msgspec.msgpack.Decoder(ChannelMessage)


class PairChannel:
    """One end of the connection. One thread sends and receives; any may `close`."""

    def __init__(self, connection: socket.socket, timeout_s: float) -> None:
        """`timeout_s`: how long a message may take to be sent, or to come once it is waited for."""
        self.timeout_s = timeout_s
        self.entries: dict[str, bytes] = {}  # of the store, what the peer has set
        self._connection = connection
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE.items():
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
        self.local_address: str = connection.getsockname()[0]
        self.peer_address: str = connection.getpeername()[0]

    @classmethod
    def connect(cls, host: str, port: int, timeout_s: float) -> "PairChannel":
        """To an owner. Raises KVTransferFailed."""
        try:
            return cls(socket.create_connection((host, port), timeout=timeout_s), timeout_s)
        except (OSError, OverflowError, UnicodeError) as error:  # the last two: no port, no host name
            raise KVTransferFailed(f"the owner at {host[:80]}:{port} cannot be reached: {error}") from error

    def send(self, message: ChannelMessage) -> None:
        """Raises KVTransferFailed."""
        data = _encoder.encode(message)
        if len(data) > _MAX_FRAME_BYTES:
            raise KVTransferFailed(f"a message of {len(data)} bytes, at most {_MAX_FRAME_BYTES} can be sent")
        try:
            self._connection.settimeout(self.timeout_s)
            self._connection.sendall(_LENGTH.pack(len(data)) + data)
        except OSError as error:
            raise KVTransferFailed(f"the peer at {self.peer_address} is gone: {error}") from error

    def receive(self, kind: type[MessageT], is_idle: bool = False) -> MessageT:
        """The next message, which has to be one of `kind`; store entries on the way are kept.

        `is_idle`: wait for it as long as the peer lives. Raises KVTransferFailed.
        """
        deadline = None if is_idle else time.monotonic() + self.timeout_s
        while True:
            message = self._receive_any(deadline)
            if isinstance(message, StoreEntry):
                self.entries[message.key] = message.value
            if isinstance(message, kind):
                return message
            if not isinstance(message, StoreEntry):
                raise KVTransferFailed(f"the peer at {self.peer_address} sent a {type(message).__name__} out of turn")

    def is_quiet(self) -> bool:
        """Nothing has come that nobody waits for: neither the connection's end nor anything else."""
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        return not poll.poll(0)

    def interrupt(self) -> None:
        """Whoever waits in this end fails now, and the peer finds the connection ended."""
        try:
            self._connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it has ended already

    def close(self) -> None:
        """Harmless when repeated."""
        self._connection.close()

    def _receive_any(self, deadline: float | None) -> ChannelMessage:
        (num_bytes,) = _LENGTH.unpack(self._read(_LENGTH.size, deadline))
        if num_bytes > _MAX_FRAME_BYTES:
            raise KVTransferFailed(f"the peer at {self.peer_address} announces a message of {num_bytes} bytes")
        # Once a message has begun, it has to end in time.
        data = self._read(num_bytes, deadline or time.monotonic() + self.timeout_s)
        try:
            return _decoder.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise KVTransferFailed(f"the peer at {self.peer_address} sent no message of ours: {error}") from None

    def _read(self, num_bytes: int, deadline: float | None) -> bytes:
        data = bytearray()
        try:
            while len(data) < num_bytes:
                self._connection.settimeout(None if deadline is None else max(deadline - time.monotonic(), 1e-3))
                piece = self._connection.recv(num_bytes - len(data))
                if not piece:
                    raise KVTransferFailed(f"the peer at {self.peer_address} has left")
                data += piece
                if deadline is not None and time.monotonic() > deadline and len(data) < num_bytes:
                    raise TimeoutError("timed out")
        except TimeoutError as error:
            raise KVTransferFailed(f"the peer at {self.peer_address} said nothing for {self.timeout_s:g} s") from error
        except OSError as error:
            raise KVTransferFailed(f"the peer at {self.peer_address} is gone: {error}") from error
        return bytes(data)
