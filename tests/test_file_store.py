"""The file store over a directory and over an object store: the same."""

import sys
import uuid
from pathlib import Path

import pytest

from errors import ConfigError
from file_store import FileGone, FileStore


@pytest.fixture(params=["directory", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> FileStore:
    place = str(tmp_path / "files") if request.param == "directory" else f"memory://{uuid.uuid4().hex}/files"
    return FileStore(place)


def test_what_is_written_is_read_sought_and_removed(store: FileStore) -> None:
    assert store.names() == [] and store.names("parts") == []
    for text in (b"first", b"0123456789" * 100_000):
        with store.create("parts/b/0") as file:
            file.write(text)
    assert b"".join(store.chunks("parts/b/0")) == text
    with store.read("parts/b/0") as file:
        file.seek(7)
        assert file.read(3) == b"789"
    assert store.names("parts") == ["b"]
    store.remove("parts/b")
    store.remove("parts/b")
    with pytest.raises(FileGone):
        store.read("parts/b/0")


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a//b", "a/../b", ".", ""])
def test_a_name_cannot_leave_the_store(store: FileStore, name: str) -> None:
    with pytest.raises(AssertionError):
        store.read(name)


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ConfigError, match=r"'s3://bucket/files': Install s3fs .*here \d{4}\.\d+"):
        FileStore("s3://bucket/files")


def test_a_place_that_nobody_knows_is_a_settings_error() -> None:
    with pytest.raises(ConfigError, match="PDQ_BATCH__STORE = 'nope://x'"):
        FileStore("nope://x")
