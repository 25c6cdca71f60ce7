"""The shipped users of Redis on a real server: what each role must not, and the passwords that they are made with."""

import asyncio
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import redis

from broker.client import open_broker
from broker.keys import Keys
from messages.job import Phase
from messages.kv_transfer import Release
from messages.request import Priority
from settings.broker import QueueSettings, RedisSettings, StreamSettings
from tests.broker.samples import make_decode_job, make_request
from tests.secured_redis import ROLES, ROOT, SecuredRedis, make_secrets, secured_redis

PREFIX = "pdq"
KEYS = Keys(PREFIX)
RECORD = KEYS.record("r")
CHEAT = "return redis.call(unpack(ARGV))"  # a script may only what its user may


@pytest.fixture(scope="module")
def server(redis_binary: str) -> Iterator[SecuredRedis]:
    with tempfile.TemporaryDirectory(prefix="pdq-redis-") as folder:
        with secured_redis(Path(folder), redis_binary, PREFIX) as running:
            yield running


DENIED_TO_ALL = [
    ("FLUSHALL",),
    ("FLUSHDB",),
    ("CONFIG", "SET", "dir", "/tmp"),
    ("KEYS", "*"),
    ("SCAN", "0"),
    ("SHUTDOWN",),
    ("MODULE", "LIST"),
    ("ACL", "LIST"),
    ("ACL", "SETUSER", "default", "on", "nopass"),
    ("CLIENT", "KILL", "TYPE", "normal"),
    ("MONITOR",),
    ("SAVE",),
    ("REPLICAOF", "no", "one"),
    ("SCRIPT", "FLUSH"),
    ("SWAPDB", "0", "1"),
    ("PUBLISH", "other", "x"),
    ("SUBSCRIBE", "other"),
    ("PSUBSCRIBE", "*"),
    ("GET", "other"),
    ("HGET", "other:{r}:record", "request"),
    ("HSET", f"{KEYS.prefix}x", "a", "b"),
    ("RENAME", RECORD, KEYS.workers()),
    ("MIGRATE", "127.0.0.1", "1", RECORD, "0", "1"),
    ("SORT", RECORD),
]

DENIED = {
    "api": [
        ("XREADGROUP", "GROUP", "g", "c", "STREAMS", KEYS.prefill_queue(), ">"),
        ("XADD", KEYS.decode_queue(), "*", "a", "b"),
        ("XREAD", "STREAMS", KEYS.inbox("w"), "0"),
        ("XADD", KEYS.inbox("w"), "*", "a", "b"),
        ("HSET", KEYS.workers(), "w", "x"),
        ("SUBSCRIBE", KEYS.cancels()),
        ("DEL", KEYS.workers()),
    ],
    "prefill": [
        ("XREADGROUP", "GROUP", "g", "c", "STREAMS", KEYS.decode_queue(), ">"),
        ("XRANGE", KEYS.decode_queue(), "-", "+"),
        ("XADD", KEYS.inbox("other"), "*", "a", "b"),
        ("XREAD", "STREAMS", KEYS.relay("api"), "0"),
        ("HGET", KEYS.key_meters("alice"), "tokens"),
        ("HSET", KEYS.key_meters("alice"), "tokens", "0"),
        ("DEL", RECORD),
    ],
    "decode": [
        ("XREADGROUP", "GROUP", "g", "c", "STREAMS", KEYS.prefill_queue(), ">"),
        ("XREAD", "STREAMS", KEYS.inbox("other"), "0"),
        ("XREAD", "STREAMS", KEYS.relay("api"), "0"),
        ("HGET", KEYS.key_meters("alice"), "tokens"),
        ("DEL", RECORD),
        ("HGETALL", KEYS.batch("b")),
    ],
    "batch": [
        ("HGET", RECORD, "request"),
        ("XRANGE", KEYS.tokens("r", 0), "-", "+"),
        ("XADD", KEYS.prefill_queue(), "*", "a", "b"),
        ("HGETALL", KEYS.workers()),
        ("HGETALL", KEYS.key_meters("alice")),
        ("PUBLISH", KEYS.cancels(), "x"),
    ],
}


def refusal(client: Any, *command: str) -> str:
    with pytest.raises(redis.ResponseError) as caught:
        client.execute_command(*command)
    return str(caught.value)


@pytest.mark.parametrize("role", DENIED)
def test_a_role_can_do_nothing_but_its_work(server: SecuredRedis, role: str) -> None:
    with server.client(role) as client:
        assert client.ping()
        for command in (*DENIED_TO_ALL, *DENIED[role]):
            assert "no permissions" in refusal(client, *command).lower(), command
            if command[0] in ("SUBSCRIBE", "PSUBSCRIBE", "MONITOR", "SHUTDOWN"):
                continue  # never allowed inside a script
            said = refusal(client, "EVAL", CHEAT, "0", *command).lower()
            assert "the user executing the script can't" in said or "not allowed from script" in said, command


def test_nobody_gets_in_without_a_password(server: SecuredRedis) -> None:
    with server.connect() as nobody:
        with pytest.raises(redis.AuthenticationError, match="Authentication required"):
            nobody.ping()
    for user in (*ROLES, "default"):
        with server.connect(user, "x") as guess:
            with pytest.raises(redis.AuthenticationError):
                guess.ping()


def test_the_probe_answers_and_no_more(server: SecuredRedis) -> None:
    with server.connect("probe", "x") as probe:
        assert probe.ping()
        for command in (("GET", RECORD), ("INFO",), ("EVAL", "return 1", "0")):
            assert "no permissions" in refusal(probe, *command)


def test_the_admin_looks_and_changes_nothing(server: SecuredRedis) -> None:
    with server.client("admin") as admin:
        assert admin.info()["redis_version"]
        assert admin.hgetall(KEYS.workers()) == {}
        for command in (("FLUSHALL",), ("SET", "a", "b"), ("CONFIG", "SET", "dir", "/"), ("ACL", "SETUSER", "x")):
            assert "no permissions" in refusal(admin, *command)


def test_each_role_does_its_part_beside_long_queues_of_every_class(server: SecuredRedis) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            api, prefill, decode = [
                await stack.enter_async_context(
                    open_broker(
                        RedisSettings(
                            url=server.url, key_prefix=PREFIX, username=role, password_file=server.password_file(role)
                        ),
                        QueueSettings(),
                        StreamSettings(),
                    )
                )
                for role in ("api", "prefill", "decode")
            ]
            await prefill.prefill_queue.ensure()
            await decode.decode_queue.ensure()
            for number in range(130):  # more than create.lua reads one by one
                await api.requests.create(make_request(f"r{number}", priority=Priority.LOW))
            (entry,) = await prefill.prefill_queue.take("p", 1)
            taken = await prefill.requests.take(entry.job, Phase.PREFILLING)
            assert taken is not None
            job = make_decode_job("r0")
            assert await prefill.requests.hand_over(entry, taken.epoch, job, Phase.DECODE_QUEUED)
            assert len(await decode.decode_queue.take("d", 1)) == 1
            backlog = await api.requests.create(make_request("last"))
            assert (backlog.prefill_jobs, backlog.prefill_tokens, backlog.decoding) == ((0, 0, 129), (0, 0, 387), 1)
            assert (await api.decode_queue.depths())[Priority.LOW] == 1
            for owner_id, owner in (
                ("prefill-1", prefill),
                ("decode-1", decode),
            ):  # who offers
                await decode.inbox(owner_id).send(Release("t"))
                assert await owner.inbox(owner_id).receive() == [Release("t")]

    asyncio.run(main())


def test_every_command_of_every_script_is_allowed_to_somebody() -> None:
    """A new script that uses a new command fails here, and not first in somebody's cluster."""
    allowed = set(re.findall(r"\+([a-z|]+)", (ROOT / "deploy/redis_users.acl").read_text()))
    for script in sorted((ROOT / "broker/lua").glob("*.lua")):
        for name, rest in re.findall(r"redis\.p?call\('([A-Z]+)'(?:, '([A-Z]+)')?", script.read_text()):
            command = f"{name}|{rest}".lower() if name in ("XINFO", "XGROUP") else name.lower()
            assert command in allowed, f"{script.name}: {command} is in no line of deploy/redis_users.acl"


def test_passwords_are_made_once_and_each_is_its_own(tmp_path: Path) -> None:
    assert make_secrets(tmp_path).returncode == 0
    passwords = {role: (tmp_path / role / "redis_password").read_text() for role in ROLES}
    assert len(set(passwords.values())) == len(ROLES)
    assert all(re.fullmatch(r"[0-9a-f]{64}\n", password) for password in passwords.values())
    users = (tmp_path / "redis/users.acl").read_text()
    assert "@" not in users.replace("-@all", "").replace("+@read", "")
    for role in ROLES:
        assert stat.S_IMODE((tmp_path / role / "redis_password").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "redis/users.acl").stat().st_mode) == 0o600
    again = make_secrets(tmp_path)
    assert again.returncode == 0 and "an earlier start" in again.stderr
    assert {role: (tmp_path / role / "redis_password").read_text() for role in ROLES} == passwords
    assert (tmp_path / "redis/users.acl").read_text() == users
    assert not any(password.strip() in again.stderr + users for password in passwords.values())


def test_what_kv_handles_are_sealed_with_is_made_once_too(tmp_path: Path) -> None:
    assert make_secrets(tmp_path).returncode == 0
    kept = tmp_path / "workers/kv_secret"
    secret = kept.read_text()
    assert re.fullmatch(r"[0-9a-f]{64}\n", secret) and stat.S_IMODE(kept.stat().st_mode) == 0o600
    again = make_secrets(tmp_path)
    assert kept.read_text() == secret and secret.strip() not in again.stderr
    assert secret.strip() not in (tmp_path / "redis/users.acl").read_text()
    (tmp_path / "operator/kv_secret").write_text("mine-own-secret-of-handles\n")
    assert make_secrets(tmp_path).returncode == 0
    assert kept.read_text() == "mine-own-secret-of-handles\n"


def test_the_operator_may_choose(tmp_path: Path) -> None:
    (tmp_path / "operator").mkdir()
    (tmp_path / "operator/api_password").write_text("mine-own\n")
    done = make_secrets(tmp_path, PDQ_REDIS__KEY_PREFIX="blue")
    assert done.returncode == 0 and "mine-own" not in done.stderr
    assert (tmp_path / "api/redis_password").read_text() == "mine-own\n"
    assert f"~{Keys('blue').workers()} " in (tmp_path / "redis/users.acl").read_text()


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("decode_password", "", "deploy/secrets/decode_password is empty"),
        ("decode_password", "a b", "holds other characters"),
        ("kv_secret", "", "deploy/secrets/kv_secret is empty"),
        ("redis_password", "old", "name it api_password"),
    ],
)
def test_a_bad_choice_stops_the_start(tmp_path: Path, file: str, text: str, said: str) -> None:
    (tmp_path / "operator").mkdir()
    (tmp_path / "operator" / file).write_text(text)
    done = make_secrets(tmp_path)
    assert done.returncode == 2 and said in done.stderr
    assert not (tmp_path / "redis/users.acl").exists()
    assert make_secrets(tmp_path, PDQ_REDIS__KEY_PREFIX="a/b").returncode == 2
