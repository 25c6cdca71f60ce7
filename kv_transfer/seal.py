"""Seals on handles and exports: who does not know the cluster's secret cannot make one, nor use one elsewhere.

A handle says which memory is copied into whose sequence, an export which memory is mapped and which host connected to.
Both come through Redis, and whoever can write there but is no worker could otherwise send the KV of one request as
another's. So the owner puts an HMAC-SHA256 over every field, a handle's with the job it was made for: the handle of
another request, or of an earlier hop, does not fit, however valid. Against an attacker in a worker it does not help,
and nothing here is encrypted. Knows keys and messages; knows no Redis and no memory.
"""

import hashlib
import hmac
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from errors import ConfigError, KVTransferFailed
from messages.kv_transfer import KVHandle, PoolExport
from settings.kv import TransferSettings

MIN_SECRET_BYTES = 16

_encoder = msgspec.msgpack.Encoder()
_Sealed = TypeVar("_Sealed", KVHandle, PoolExport)


class NotAuthentic(KVTransferFailed):
    """It was not sealed with our secret, or not for this."""


class Seal:
    """Made of a cluster's secret. With an empty one nothing is sealed and everything passes."""

    def __init__(self, secret: bytes = b"") -> None:
        self._secret = secret

    @property
    def is_open(self) -> bool:
        """Whether there is no secret."""
        return not self._secret

    def seal_handle(self, handle: KVHandle, request_id: str, choice: int, hop: int) -> KVHandle:
        """The handle for this job, sealed."""
        return self._sealed(handle, "handle", request_id, choice, hop)

    def check_handle(self, handle: KVHandle, request_id: str, choice: int, hop: int) -> None:
        """Before any field of it is used. Raises NotAuthentic unless it was sealed for this job."""
        if not self._is_sealed(handle, "handle", request_id, choice, hop):
            raise NotAuthentic("the handle is not sealed with this cluster's secret for this job")

    def seal_export(self, export: PoolExport) -> PoolExport:
        """What an owner says of its pool, its ranks' included, sealed."""
        return self._sealed(export, "export")

    def check_export(self, export: PoolExport) -> None:
        """Before any field of it is used. Raises NotAuthentic unless it was sealed so."""
        if not self._is_sealed(export, "export"):
            raise NotAuthentic("the export is not sealed with this cluster's secret")

    def _sealed(self, message: _Sealed, *purpose: str | int) -> _Sealed:
        return message if self.is_open else msgspec.structs.replace(message, mac=self._mac(message, purpose))

    def _is_sealed(self, message: _Sealed, *purpose: str | int) -> bool:
        return self.is_open or hmac.compare_digest(self._mac(message, purpose), message.mac)

    def _mac(self, message: KVHandle | PoolExport, purpose: tuple[str | int, ...]) -> bytes:
        bare = msgspec.structs.replace(message, mac=b"")
        return hmac.digest(self._secret, _encoder.encode((purpose, bare)), hashlib.sha256)


def open_seal(settings: TransferSettings, warn: Callable[[str], object]) -> Seal:
    """With the secret of PDQ_KV_TRANSFER__SECRET_FILE; `warn` is told when there is none. Raises ConfigError."""
    if settings.secret_file is None:
        warn("kv_handles_unauthenticated")
        return Seal()
    return Seal(_read_secret(settings.secret_file))


def _read_secret(path: Path) -> bytes:
    try:
        secret = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"PDQ_KV_TRANSFER__SECRET_FILE = {str(path)!r}: {error.strerror}") from None
    if len(secret) < MIN_SECRET_BYTES:
        raise ConfigError(
            f"PDQ_KV_TRANSFER__SECRET_FILE = {str(path)!r}: holds {len(secret)} bytes, at least {MIN_SECRET_BYTES}"
        )
    return secret
