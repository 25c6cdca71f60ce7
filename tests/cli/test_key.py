"""`pdq key` as a user meets it."""

import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from api.key_file import hash_of, read_keys
from cli.__main__ import main

Answer = tuple[int, str, str]  # exit code, stdout, stderr


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of keys that the settings name; not there yet."""
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("PDQ_SECURITY__KEYS_FILE", str(tmp_path / "keys"))
    return tmp_path / "keys"


@pytest.fixture
def pdq(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    def run(*arguments: str) -> Answer:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        out, err = capsys.readouterr()
        assert ended.value.code is None or isinstance(ended.value.code, int)
        return ended.value.code or 0, out, err

    return run


RunPdq = Callable[..., Answer]


def test_a_key_is_shown_once_and_kept_as_a_hash(pdq: RunPdq, file: Path) -> None:
    code, out, err = pdq("key", "new", "alice", "--name", "Alice", "--requests-per-min", "60")
    assert code == 0 and str(file) in err
    (key,) = out.split()
    assert json.loads(file.read_text()) == {
        "id": "alice", "sha256": hash_of(key), "name": "Alice", "requests_per_min": 60
    }  # fmt: skip
    assert key not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    code, out, _ = pdq("key", "list")
    assert code == 0 and key not in out and hash_of(key) not in out
    assert all(word in out for word in ("alice", "client", "valid", "60", "default", "Alice"))


def test_a_revoked_key_stays_on_the_list(pdq: RunPdq, file: Path) -> None:
    pdq("key", "new", "alice")
    pdq("key", "new", "root", "--scope", "admin", "--max-in-flight", "0")
    code, out, _ = pdq("key", "revoke", "alice")
    assert code == 0 and "alice is revoked" in out
    assert [(key.id, key.scope, key.disabled) for key in read_keys(file)] == [
        ("alice", "client", True),
        ("root", "admin", False),
    ]
    _, out, _ = pdq("key", "list")
    assert "revoked" in out and "no limit" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("new", "a b"), "ID = 'a b': must be 1 to 64 characters"),
        (("new", "bob", "--scope", "root"), "--scope = 'root': must be client, monitor, admin"),
        (("new", "alice"), "there is a key alice in"),
        (("revoke", "carol"), "there is no key 'carol' in"),
        (("list", "--file", "/nowhere/keys"), "key file /nowhere/keys: No such file"),
        (("new", "bob", "--file", "/nowhere/keys"), "folder /nowhere: No such file"),
        (("new", "bob", "--file", "/proc/pdq-keys"), "key file /proc/pdq-keys cannot be written"),
    ],
)
def test_mistakes_are_one_sentence(pdq: RunPdq, file: Path, arguments: tuple[str, ...], said: str) -> None:
    pdq("key", "new", "alice")
    before = file.read_text()
    code, out, err = pdq("key", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("pdq: ") and said in err and err.count("\n") == 1
    assert file.read_text() == before


def test_a_file_must_be_named(pdq: RunPdq, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PDQ_SECURITY__KEYS_FILE", raising=False)
    code, _, err = pdq("key", "list")
    assert code == 2 and "give --file PATH or set PDQ_SECURITY__KEYS_FILE" in err
