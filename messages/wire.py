"""How messages travel: msgpack behind one version byte. A struct is an array on the wire, so fields are only ever added
at the end.

Each message is a frozen struct, one per arrow of the drawing; the room's other files are named for what they speak of.
They know no room, no Redis and no torch.
"""

from typing import Any, TypeVar, get_args

import msgspec

from errors import WireError
from messages.batch import Batch, StoredFile
from messages.job import DecodeJob, PrefillJob
from messages.kv_transfer import Release
from messages.request import GenerationRequest
from messages.token_event import RelayedEvents, TokenEvent
from messages.worker_status import WorkerStatus

WIRE_VERSION = 1

Message = (
    GenerationRequest
    | PrefillJob
    | DecodeJob
    | TokenEvent
    | RelayedEvents
    | Release
    | WorkerStatus
    | StoredFile
    | Batch
)
MessageT = TypeVar("MessageT", bound=Message)

_encoder = msgspec.msgpack.Encoder()
_decoders: dict[Any, Any] = {kind: msgspec.msgpack.Decoder(kind) for kind in get_args(Message)}
_VERSION_BYTE = bytes([WIRE_VERSION])


def encode(message: Message) -> bytes:
    """The message's wire form."""
    return _VERSION_BYTE + _encoder.encode(message)


def decode(data: bytes, kind: type[MessageT]) -> MessageT:
    """The message in `data`. Raises WireError when it is not one of `kind`."""
    if data[:1] != _VERSION_BYTE:
        raise WireError(f"{kind.__name__}: wire version {data[:1]!r}, this process speaks {WIRE_VERSION}")
    try:
        message: MessageT = _decoders[kind].decode(memoryview(data)[1:])
        return message
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise WireError(f"{kind.__name__}: {error}") from None
