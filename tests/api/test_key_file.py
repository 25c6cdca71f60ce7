"""The file of keys: what a good line is, what is said of a bad one, how it is replaced, when it is read again."""

import json
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from api.key_file import ApiKey, KeyFileError, Scope, add_key, disable_key, encode_key, hash_of, new_key, read_keys
from api.key_ring import CHECK_S, KeyRing
from broker.key_limits import Limits
from settings.api import SecuritySettings

HASH = hash_of("pdq-text")


def line(**fields: Any) -> str:
    return json.dumps({"id": "alice", "sha256": HASH} | fields)


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_key_is_random_and_only_its_hash_is_kept() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(key.startswith("pdq-") and len(key) == 47 for key in keys)  # 43 characters are 256 bits
    key = new_key()
    assert key not in encode_key(ApiKey("alice", hash_of(key)))


def test_people_may_edit_it(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# who\n\n{line(requests_per_min=5, scope='admin')}\n  {line(id='bob', disabled=True)}  \n")
    alice, bob = read_keys(path)
    assert (alice.id, alice.scope, alice.requests_per_min, alice.disabled) == ("alice", Scope.ADMIN, 5, False)
    assert bob.disabled


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("{", "line 2: Input data was truncated"),
        ("[]", "line 2: Expected `object`"),
        (line(id="bob", admin=True), "line 2: Object contains unknown field `admin`"),
        (line(id="bob", scope="root"), "line 2: Invalid enum value 'root'"),
        (line(id="a b"), "line 2: id must be 1 to 64 characters"),
        (line(id="bob", sha256="ABC"), "line 2: sha256 of key bob must be 64 hexadecimal digits"),
        (line(id="bob", max_in_flight=-1), "line 2: max_in_flight of key bob must be at least 0, got -1"),
        (line(), "line 2: there is a key alice already"),
        (json.dumps({"id": "bob"}), "line 2: Object missing required field `sha256`"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, bad: str, said: str) -> None:
    path = tmp_path / "keys"
    path.write_text(f"{line()}\n{bad}\n")
    with pytest.raises(KeyFileError) as caught:
        read_keys(path)
    assert f"{path} {said}" in str(caught.value)
    assert HASH not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="No such file or directory; `pdq key new NAME` makes one"):
        KeyRing(tmp_path / "none", SecuritySettings())
    with pytest.raises(KeyFileError, match="Is a directory"):
        KeyRing(tmp_path, SecuritySettings())


def test_a_change_keeps_every_other_line_and_shows_it_to_the_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# mine\n{line()}\n")
    path.chmod(0o644)
    add_key(path, ApiKey("bob", hash_of("x")))
    disable_key(path, "alice")
    comment, alice, bob = path.read_text().splitlines()
    assert comment == "# mine"
    assert json.loads(alice) == {"id": "alice", "sha256": HASH, "disabled": True}
    assert json.loads(bob) == {"id": "bob", "sha256": hash_of("x")}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["keys"]
    with pytest.raises(KeyFileError, match="there is a key bob in .* already"):
        add_key(path, ApiKey("bob", hash_of("y")))
    with pytest.raises(KeyFileError, match="there is no key 'carol'"):
        disable_key(path, "carol")


def test_writers_at_once_lose_no_key(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    writers = [threading.Thread(target=add_key, args=(path, ApiKey(f"k{n}", hash_of(str(n))))) for n in range(16)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert {key.id for key in read_keys(path)} == {f"k{number}" for number in range(16)}


def test_find_knows_valid_keys_only(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    texts = [new_key() for _ in range(3)]
    for number, text in enumerate(texts):
        add_key(path, ApiKey(f"k{number}", hash_of(text), disabled=number == 2))
    ring = KeyRing(path, SecuritySettings())
    found = [ring.find(text.encode()) for text in texts]
    assert [key and key.id for key in found] == ["k0", "k1", None]
    assert ring.find(b"") is None and ring.find(hash_of(texts[0]).encode()) is None


def test_limits_a_key_does_not_name_are_the_settings(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(line(requests_per_min=0, max_in_flight=7))
    ring = KeyRing(path, SecuritySettings(requests_per_min=1, tokens_per_min=2, max_in_flight=3))
    (key,) = read_keys(path)
    assert ring.limits_of(key) == Limits(requests_per_min=0, tokens_per_min=2, max_in_flight=7)


def test_it_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    path, clock = tmp_path / "keys", Clock()
    add_key(path, ApiKey("alice", hash_of("a")))
    ring = KeyRing(path, SecuritySettings(), clock)
    add_key(path, ApiKey("bob", hash_of("b")))
    clock.now_s += CHECK_S / 2
    assert ring.find(b"b") is None  # not looked at yet
    clock.now_s += CHECK_S
    assert ring.find(b"b") is not None
    disable_key(path, "alice")
    clock.now_s += CHECK_S
    assert ring.find(b"a") is None


@pytest.mark.parametrize("breakage", ["torn", "gone"])
def test_a_broken_file_keeps_the_old_keys(
    tmp_path: Path, breakage: str, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    path, clock = tmp_path / "keys", Clock()
    add_key(path, ApiKey("alice", hash_of("a")))
    ring = KeyRing(path, SecuritySettings(), clock)
    good = path.read_bytes()
    path.unlink() if breakage == "gone" else path.write_bytes(good + b"{\n")
    for _ in range(3):
        clock.now_s += CHECK_S
        assert ring.find(b"a") is not None
    said = caplog.text + "".join(capsys.readouterr())
    assert said.count("keys_not_reloaded") == 1, "said once, not at every look"
    path.write_bytes(b"")
    clock.now_s += CHECK_S
    assert ring.find(b"a") is None  # an empty file is a good one, without keys
