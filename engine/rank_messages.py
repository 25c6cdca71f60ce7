"""What rank 0 of a tensor-parallel worker and its other ranks say to each other: one struct per arrow.

Between processes of one version on one host, so without a version of its own. Order, per rank:

    rank 0                      rank 1 and up
    Start              ->
                       <-       Here            its modules are loaded; now all join the process group
                       <-       Loaded          (or StartFailed, any time before Ready)
    Serve              ->
                       <-       Ready
    step after step    ->                       `engine/step.py`; only the end of the process is an answer

Pulls go over a second pipe, beside the steps: Pull ->, <- Pulled.
"""

from typing import TypeVar

import msgspec

from engine.step import DecodeStep, PrefillStep, ScoreStep
from engine.tensor_parallel import Shard
from errors import WireError
from messages.kv_transfer import KVHandle, PoolExport


class Start(msgspec.Struct, frozen=True, tag=True):
    """Who you are."""

    settings: bytes  # Settings as JSON
    worker_id: str
    shard: Shard
    num_threads: int
    store_path: str  # of the FileStore by which the ranks find each other


class Here(msgspec.Struct, frozen=True, tag=True):
    """Ready to join the others."""


class Loaded(msgspec.Struct, frozen=True, tag=True):
    """The weights are there."""

    num_blocks: int  # that there is room for


class StartFailed(msgspec.Struct, frozen=True, tag=True):
    """A StartupError."""

    exit_code: int
    reason: str


class Serve(msgspec.Struct, frozen=True, tag=True):
    """Make the pool and take steps."""

    num_blocks: int


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The pool is there."""

    export: PoolExport | None  # None: nobody pulls from this pool


class Pull(msgspec.Struct, frozen=True, tag=True):
    """Pull your part of what is offered into these blocks."""

    handle: KVHandle
    block_ids: list[int]
    export: PoolExport | None
    request_id: str = ""  # for the log


class Pulled(msgspec.Struct, frozen=True, tag=True):
    """It is there, or why not."""

    failure: str = ""


RankMessage = Start | Here | Loaded | StartFailed | Serve | Ready | PrefillStep | DecodeStep | ScoreStep | Pull | Pulled
MessageT = TypeVar("MessageT", bound=RankMessage)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[RankMessage] = msgspec.msgpack.Decoder(RankMessage)


def encode(message: RankMessage) -> bytes:
    """The message as bytes."""
    return _encoder.encode(message)


def decode(data: bytes) -> RankMessage:
    """The message in `data`. Raises WireError."""
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise WireError(f"between ranks: {error}") from None
