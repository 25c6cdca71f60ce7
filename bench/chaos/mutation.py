"""Messages that almost are messages: valid ones with bits flipped, cut, spliced, or fields of other types put in.

Pure but for the source of random numbers. Knows how every message looks; knows nobody who reads them.
"""

import math
import random
from typing import Any

import msgspec

from messages.job import DecodeJob, PrefillJob
from messages.kv_transfer import KVHandle, PoolExport, Release, TransferCount
from messages.request import AnswerParams, GenerationRequest, OutputParams, Priority, SamplingParams
from messages.token_event import FinishReason, RelayedEvent, RelayedEvents, TokenEvent
from messages.wire import Message
from messages.worker_status import Role, WorkerState, WorkerStatus

_ODD: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    2**31,
    2**63 - 1,
    -(2**63),
    2**64 - 1,
    0.5,
    math.nan,
    math.inf,
    "",
    "x" * 5000,
    "a:b:c",
    "0",
    "\x00{}\n*?",
    "\U0001f642",
    "../../etc/passwd",
    b"",
    b"\xff\xfe",
    [],
    [[]],
    [0] * 300,
    {},
    {"a": 1},
    {1: [2]},
)


def examples(handle: KVHandle, export: PoolExport) -> list[Message]:
    """One or two valid messages of every kind; the handle and the export are to be used in them."""
    sampling = SamplingParams(seed=7, do_sample=True, logit_bias={5: 1.5}, allowed_token_ids=(1, 2, 3))
    output = OutputParams(stop_strings=("stop",), stop_token_ids=((1, 2),))
    return [
        GenerationRequest("r", [1, 2, 3], sampling, output, n=2, api_id="api", answer=AnswerParams("generate")),
        GenerationRequest("r", list(range(200)), SamplingParams(seed=1), priority=Priority.LOW, deadline_ms=10**13),
        PrefillJob("r", 0, 1),
        PrefillJob("r", 1, 3, attempt=2),
        DecodeJob("r", 0, 2, handle),
        DecodeJob("r", 1, 2, handle, attempt=1),
        TokenEvent(5, -0.25),
        TokenEvent(finish_reason=FinishReason.ERROR, error="it failed", error_status=503),
        RelayedEvents([RelayedEvent("r:0", 3, TokenEvent(5, -0.25)), RelayedEvent("r:1", 0, TokenEvent(6))]),
        Release(handle.transfer_id),
        WorkerStatus("prefill-0", Role.PREFILL, WorkerState.READY, "host", 1, 0, export=export, gpus=("GPU-1",)),
        WorkerStatus("decode-0", Role.DECODE, WorkerState.LOADING, "h", 2, 5, transfers={"nixl": TransferCount(1, 2)}),
    ]


def mutated(message: bytes, other: bytes, source: random.Random) -> bytes:
    """`message`, changed in one to three places; `other` gives what is spliced in."""
    for _ in range(source.choice((1, 1, 2, 3))):
        message = source.choice(_WAYS)(message, other, source)
    return message


def with_odd_fields(value: Any, source: random.Random) -> Any:
    """A msgpack value in which one place holds something else."""
    if isinstance(value, list) and value and source.random() < 0.85:
        at = source.randrange(len(value))
        changed = list(value)
        way = source.random()
        if way < 0.1:
            del changed[at]
        elif way < 0.2:
            changed.insert(at, source.choice(_ODD))
        else:
            changed[at] = with_odd_fields(value[at], source)
        return changed
    if isinstance(value, dict) and value and source.random() < 0.85:
        key = source.choice(list(value))
        return value | {key: with_odd_fields(value[key], source)}
    if type(value) is int and source.random() < 0.5:
        return max(-(2**63), min(2**64 - 1, value + source.choice((-1, 1, 7, 2**16, 2**32))))
    return source.choice(_ODD)


def _flip(message: bytes, _: bytes, source: random.Random) -> bytes:
    changed = bytearray(message or b"\x00")
    changed[source.randrange(len(changed))] ^= 1 << source.randrange(8)
    return bytes(changed)


def _cut(message: bytes, _: bytes, source: random.Random) -> bytes:
    start = source.randrange(len(message) + 1)
    return message[:start] if source.random() < 0.7 else message[:start] + message[start + source.randrange(1, 9) :]


def _insert(message: bytes, _: bytes, source: random.Random) -> bytes:
    at = source.randrange(len(message) + 1)
    return message[:at] + source.randbytes(source.randrange(1, 9)) + message[at:]


def _splice(message: bytes, other: bytes, source: random.Random) -> bytes:
    return message[: source.randrange(len(message) + 1)] + other[source.randrange(len(other) + 1) :]


def _swap_types(message: bytes, _: bytes, source: random.Random) -> bytes:
    try:
        value = msgspec.msgpack.decode(message[1:])
        return message[:1] + msgspec.msgpack.encode(with_odd_fields(value, source))
    except (msgspec.MsgspecError, UnicodeDecodeError, OverflowError, ValueError):
        return message  # it was no msgpack any more


_WAYS = (_flip, _cut, _insert, _splice, _swap_types, _swap_types, _swap_types)
