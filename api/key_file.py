"""The file of API keys: one JSON object a line, made to be read and edited by people; `#` begins a comment line.

    {"id": "alice", "sha256": "9f86...", "scope": "client", "name": "Alice's notebook", "requests_per_min": 60}

A key is 256 random bits, so plain SHA-256 keeps it: nobody can guess a key and try its hash, which is all that a slow,
salted password hash would hinder, and it costs microseconds for each request. Knows the file's form, which lines are
good, and how to replace it whole; knows no HTTP.
"""

import fcntl
import hashlib
import os
import re
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

import msgspec

from errors import ConfigError

KEY_PREFIX = "pdq-"  # lets people and scanners of leaked secrets tell what it is
ID_PATTERN = re.compile(r"[A-Za-z0-9._-]{1,64}")  # part of a Redis key and of log lines
_HASH_PATTERN = re.compile(r"[0-9a-f]{64}")


class Scope(StrEnum):
    """What a key is good for."""

    CLIENT = "client"  # asking for text
    MONITOR = "monitor"  # looking at the server: metrics, load, documentation
    ADMIN = "admin"  # everything


class ApiKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One line. A limit that is left out is the settings' default, 0 is none."""

    id: str
    sha256: str
    scope: Scope = Scope.CLIENT
    name: str = ""
    disabled: bool = False
    requests_per_min: int | None = None
    tokens_per_min: int | None = None
    max_in_flight: int | None = None


class KeyFileError(ConfigError):
    """The file cannot be read or a line of it is no key. Says which line and never what it holds."""


def new_key() -> str:
    """A key nobody has."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def hash_of(key: str | bytes) -> str:
    """What the file holds of a key."""
    return hashlib.sha256(key.encode() if isinstance(key, str) else key).hexdigest()


def encode_key(key: ApiKey) -> str:
    """Its line, without the end of line."""
    return msgspec.json.encode(key).decode()


def parse_keys(lines: Sequence[str], source: Path) -> list[tuple[int, ApiKey]]:
    """(place in `lines`, key) of every line that holds one. Raises KeyFileError."""
    found: list[tuple[int, ApiKey]] = []
    for place, line in enumerate(lines):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        key = _parse_key(line, f"{source} line {place + 1}")
        if any(key.id == other.id for _, other in found):
            raise KeyFileError(f"{source} line {place + 1}: there is a key {key.id} already")
        found.append((place, key))
    return found


def read_keys(source: Path) -> list[ApiKey]:
    """Every key of the file. Raises KeyFileError."""
    return [key for _, key in parse_keys(_read_lines(source), source)]


def add_key(path: Path, key: ApiKey) -> None:
    """Put `key` at the end of the file, which is made if need be. Raises KeyFileError, also when its id is taken."""
    with _locked(path):
        lines = _read_lines(path) if path.exists() else []
        if any(key.id == other.id for _, other in parse_keys(lines, path)):
            raise KeyFileError(f"there is a key {key.id} in {path} already; revoked keys keep their id")
        _replace(path, [*lines, encode_key(key)])


def disable_key(path: Path, key_id: str) -> None:
    """Mark the key as disabled; every other line stays as it is. Raises KeyFileError when there is none."""
    with _locked(path):
        lines = _read_lines(path)
        places = {key.id: (place, key) for place, key in parse_keys(lines, path)}
        if key_id not in places:
            raise KeyFileError(f"there is no key {key_id!r} in {path}")
        place, key = places[key_id]
        lines[place] = encode_key(msgspec.structs.replace(key, disabled=True))
        _replace(path, lines)


def _parse_key(line: str, where: str) -> ApiKey:
    try:
        key = msgspec.json.decode(line, type=ApiKey)
    except msgspec.MsgspecError as error:
        raise KeyFileError(f"{where}: {error}") from None
    if not ID_PATTERN.fullmatch(key.id):
        raise KeyFileError(f"{where}: id must be 1 to 64 characters of A-Z a-z 0-9 . _ -")
    if not _HASH_PATTERN.fullmatch(key.sha256):
        raise KeyFileError(f"{where}: sha256 of key {key.id} must be 64 hexadecimal digits in lower case")
    for limit in ("requests_per_min", "tokens_per_min", "max_in_flight"):
        if (getattr(key, limit) or 0) < 0:
            raise KeyFileError(f"{where}: {limit} of key {key.id} must be at least 0, got {getattr(key, limit)}")
    return key


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        hint = "; `pdq key new NAME` makes one" if isinstance(error, FileNotFoundError) else ""
        raise KeyFileError(f"key file {path}: {error.strerror}{hint}") from None
    except UnicodeDecodeError:
        raise KeyFileError(f"key file {path} is not UTF-8") from None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One writer at a time; readers need no lock, the file is replaced as a whole."""
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise KeyFileError(f"key file {path}: folder {path.parent}: {error.strerror}") from None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _replace(path: Path, lines: Sequence[str]) -> None:
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write("".join(f"{line}\n" for line in lines))
                if path.exists():  # a server of another user must still be able to read it
                    owner = path.stat()
                    os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise KeyFileError(f"key file {path} cannot be written: {error.strerror}") from None
