"""Where the bytes of files are: a directory, or whatever fsspec has an address for. Knows names and bytes, no Redis.

Blocking; whoever runs an event loop calls it in a thread. A name is a relative path of letters, digits, `_`, `-`, `.`.
A file counts once its record is in Redis, so nothing here has to be atomic: what was half written is written again.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from messages import ConfigError, PdqError

CHUNK_BYTES = 1 << 18
OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oci", "oss"}  # without folders to make
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")


class FileGone(PdqError):
    """There is no file of this name any more."""


class FileStore:
    """One place. Raises FileGone, and `failures` when the place is away or full."""

    def __init__(self, place: str) -> None:
        """Raises ConfigError when fsspec knows no such place, or lacks the package for it."""
        import fsspec

        path = place if "://" in place else str(Path(place).expanduser().absolute())
        try:
            # Other processes write here too, so what a folder held a while ago says nothing.
            self._files, self._root = fsspec.core.url_to_fs(path, use_listings_cache=False)
        except ValueError as error:
            raise ConfigError(f"PDQ_BATCH__STORE = {place!r}: {error}") from None
        except ImportError as error:
            same = f"s3fs and gcsfs go with fsspec of the same version, here {fsspec.__version__}"
            raise ConfigError(f"PDQ_BATCH__STORE = {place!r}: {error} ({same})") from None
        protocols = self._files.protocol
        self._has_folders = OBJECT_STORES.isdisjoint([protocols] if isinstance(protocols, str) else protocols)
        self.failures: tuple[type[Exception], ...] = (OSError, *_failures_of(place))

    def create(self, name: str) -> IO[bytes]:
        """A file to write, in place of one of that name; there when it is closed."""
        path = self._path(name)
        if self._has_folders:  # in an object store it would make a bucket of that name
            self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
        return self._opened(path, "wb")

    def read(self, name: str) -> IO[bytes]:
        """The file, from its beginning; it can be sought in."""
        return self._opened(self._path(name), "rb")

    def chunks(self, name: str) -> Iterator[bytes]:
        """The file, piece by piece."""
        with self.read(name) as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    def remove(self, name: str) -> None:
        """The file or folder is gone afterwards, whether it was there or not."""
        path = self._path(name)
        if self._files.exists(path):
            self._files.rm(path, recursive=True)

    def names(self, folder: str = "") -> list[str]:
        """What is directly in the folder."""
        path = self._path(folder) if folder else self._root
        if not self._files.exists(path):
            return []
        return sorted(each.rstrip("/").rpartition("/")[2] for each in self._files.ls(path, detail=False))

    def _opened(self, path: str, mode: str) -> IO[bytes]:
        try:
            opened: Any = self._files.open(path, mode)
        except FileNotFoundError:
            raise FileGone(f"{path.rpartition('/')[2]} is not in the file store") from None
        return opened  # type: ignore[no-any-return]

    def _path(self, name: str) -> str:
        assert _NAME.fullmatch(name), name
        return f"{self._root}/{name}"


def _failures_of(place: str) -> tuple[type[Exception], ...]:
    """What a place's client raises besides OSError; s3fs leaves those that have no answer of S3 as botocore's."""
    if not place.startswith(("s3://", "s3a://")):
        return ()
    from botocore.exceptions import BotoCoreError

    return (BotoCoreError,)
