"""Who may say where KV lies: every field is under the seal, and the job that a handle is for."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from errors import ConfigError
from kv_transfer.seal import NotAuthentic, Seal, open_seal
from messages.job import DecodeJob
from messages.kv_transfer import KVHandle, PoolExport
from messages.wire import decode, encode
from messages.worker_status import Role, WorkerState, WorkerStatus
from settings.kv import TransferSettings

SEAL = Seal(b"0123456789abcdef")
HANDLE = KVHandle("t", "prefill-1", "pdq-p-0", 7, 3, 5, "layout", 33, [4, 0, 9], 2, True)
EXPORT = PoolExport(
    "prefill-1", "pdq-p-0", 7, "host", "cpu", 8, 16, {"nixl": b"n"}, (PoolExport("r", "pdq-r", 8, "h", "cpu", 8, 16),)
)

OTHER: dict[type, Any] = {
    str: "other",
    int: 99,
    bool: False,
    list: [4, 9, 0],
    tuple: (),
    dict: {"nixl": b"m"},
    bytes: b"x" * 32,
}


@pytest.mark.parametrize("name", [field.name for field in msgspec.structs.fields(KVHandle)])
def test_every_field_of_a_handle_is_sealed(name: str) -> None:
    sealed = SEAL.seal_handle(HANDLE, "request", 1, 2)
    SEAL.check_handle(sealed, "request", 1, 2)
    changed = msgspec.structs.replace(sealed, **{name: OTHER[type(getattr(sealed, name))]})
    with pytest.raises(NotAuthentic):
        SEAL.check_handle(changed, "request", 1, 2)


@pytest.mark.parametrize("name", [field.name for field in msgspec.structs.fields(PoolExport)])
def test_every_field_of_an_export_is_sealed(name: str) -> None:
    sealed = SEAL.seal_export(EXPORT)
    SEAL.check_export(sealed)
    changed = msgspec.structs.replace(sealed, **{name: OTHER[type(getattr(sealed, name))]})
    with pytest.raises(NotAuthentic):
        SEAL.check_export(changed)


def test_a_rank_of_an_export_is_sealed_with_it() -> None:
    sealed = SEAL.seal_export(EXPORT)
    rank = msgspec.structs.replace(EXPORT.ranks[0], pool="pdq-another")
    with pytest.raises(NotAuthentic):
        SEAL.check_export(msgspec.structs.replace(sealed, ranks=(rank,)))


@pytest.mark.parametrize(
    "job", [("other", 1, 2), ("request", 0, 2), ("request", 1, 1), ("request", 1, 3), ("reques", 1, 2)]
)
def test_a_handle_is_good_for_its_job_alone(job: tuple[str, int, int]) -> None:
    with pytest.raises(NotAuthentic):
        SEAL.check_handle(SEAL.seal_handle(HANDLE, "request", 1, 2), *job)


def test_another_secret_or_none_at_all() -> None:
    other = Seal(b"another secret!!").seal_handle(HANDLE, "request", 1, 2)
    for wrong in (other, HANDLE, msgspec.structs.replace(HANDLE, mac=SEAL.seal_export(EXPORT).mac)):
        with pytest.raises(NotAuthentic):
            SEAL.check_handle(wrong, "request", 1, 2)
    with pytest.raises(NotAuthentic):
        SEAL.check_export(EXPORT)


def test_a_seal_outlives_the_wire() -> None:
    job = decode(encode(DecodeJob("request", 1, 2, SEAL.seal_handle(HANDLE, "request", 1, 2))), DecodeJob)
    SEAL.check_handle(job.kv_handle, job.request_id, job.choice, job.hop)
    status = WorkerStatus("prefill-1", Role.PREFILL, WorkerState.READY, "host", 1, 0, export=SEAL.seal_export(EXPORT))
    export = decode(encode(status), WorkerStatus).export
    assert export is not None
    SEAL.check_export(export)
    assert len(encode(DecodeJob("r" * 32, 0, 1, msgspec.structs.replace(job.kv_handle, block_ids=[])))) <= 1024


def test_without_a_secret_nothing_is_sealed_and_that_is_said() -> None:
    said: list[str] = []
    seal = open_seal(TransferSettings(), said.append)
    assert said == ["kv_handles_unauthenticated"]
    handle = seal.seal_handle(HANDLE, "request", 1, 2)
    assert handle.mac == b"" and seal.seal_export(EXPORT).mac == b""
    seal.check_handle(handle, "another", 0, 0)
    seal.check_export(EXPORT)


def test_the_secret_is_a_file_of_enough_bytes(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    with pytest.raises(ConfigError, match="PDQ_KV_TRANSFER__SECRET_FILE = .*secret': No such file"):
        open_seal(TransferSettings(secret_file=path), print)
    path.write_text("too short\n")
    with pytest.raises(ConfigError, match="holds 9 bytes, at least 16"):
        open_seal(TransferSettings(secret_file=path), print)
    path.write_bytes(b"0123456789abcdef\n")  # a line end is no part of it
    open_seal(TransferSettings(secret_file=path), print).check_export(SEAL.seal_export(EXPORT))
