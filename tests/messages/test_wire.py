"""Messages: their wire form, its version, and that nothing else is believed."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from errors import WireError
from messages.job import DecodeJob, PrefillJob
from messages.kv_transfer import KVHandle, Release
from messages.request import GenerationRequest, OutputParams, SamplingParams
from messages.token_event import FinishReason, RelayedEvent, RelayedEvents, TokenEvent
from messages.wire import Message, decode, encode
from messages.worker_status import Role, WorkerState, WorkerStatus

HANDLE = KVHandle("transfer", "worker", "pool", 2**63 - 1, 3, 4, "layout", 500, list(range(32)))
SAMPLING = SamplingParams(seed=2**63 - 1, logit_bias={5: -100.0}, allowed_token_ids=(1, 2))
MESSAGES: list[Message] = [
    GenerationRequest("id", [1, 2], SAMPLING, OutputParams(stop_strings=("a",), stop_token_ids=((1, 2),))),
    PrefillJob("id", 0, 1),
    DecodeJob("id", 0, 2, HANDLE),
    TokenEvent(5, -0.5, FinishReason.STOP),
    RelayedEvents([RelayedEvent("id:0", 7, TokenEvent(5)), RelayedEvent("id:1", 0, TokenEvent(6, -0.5))]),
    Release("transfer"),
    WorkerStatus("worker", Role.DECODE, WorkerState.READY, "host", 1, 2),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_what_is_encoded_is_decoded(message: Message) -> None:
    assert decode(encode(message), type(message)) == message


def test_a_handle_takes_at_most_a_kibibyte_besides_its_block_ids() -> None:
    bare = msgspec.structs.replace(HANDLE, block_ids=[], transfer_id="f" * 32, worker_id="w" * 64, pool="p" * 96)
    assert len(encode(DecodeJob("r" * 64, 7, 2**31, bare))) <= 1024


def test_another_version_is_refused() -> None:
    data = encode(MESSAGES[1])
    with pytest.raises(WireError, match="wire version"):
        decode(b"\x7f" + data[1:], PrefillJob)


@given(st.sampled_from(MESSAGES), st.data())
def test_damaged_bytes_are_a_wire_error_or_another_message(message: Message, data: st.DataObject) -> None:
    wire = bytearray(encode(message))
    wire[data.draw(st.integers(0, len(wire) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        assert isinstance(decode(bytes(wire), type(message)), type(message))
    except WireError:
        pass


@given(st.binary(max_size=60))
def test_foreign_bytes_are_a_wire_error_or_a_message(data: bytes) -> None:
    try:
        assert isinstance(decode(b"\x01" + data, DecodeJob), DecodeJob)
    except WireError:
        pass
