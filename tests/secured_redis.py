"""A real redis-server under the shipped file of users, with passwords made by deploy/make_secrets.sh."""

import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

ROOT = Path(__file__).parents[1]
ROLES = ("admin", "api", "prefill", "decode", "batch")


def make_secrets(root: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run deploy/make_secrets.sh in `root`, with the folders that its container has."""
    for name in (*ROLES, "redis", "workers", "operator"):
        (root / name).mkdir(exist_ok=True)
    command = ["sh", str(ROOT / "deploy/make_secrets.sh"), str(root)]
    return subprocess.run(command, env=os.environ | env, capture_output=True, text=True, timeout=20)


class SecuredRedis:
    """Its socket, and each role's user and password."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "redis.sock"
        self.url = f"unix://{self.socket}"

    def password_file(self, role: str) -> Path:
        return self.folder / role / "redis_password"

    def environment(self, role: str) -> dict[str, str]:
        """What a process of the role is told, as compose.yaml does."""
        return {"PDQ_REDIS__USERNAME": role, "PDQ_REDIS__PASSWORD_FILE": str(self.password_file(role))}

    def connect(self, user: str | None = None, password: str | None = None) -> redis.Redis:
        """A client as that user; without one, as somebody who does not say who he is."""
        options: dict[str, Any] = {"driver_info": None, "protocol": 2, "retry": Retry(NoBackoff(), 0)}
        return redis.Redis(unix_socket_path=str(self.socket), username=user, password=password, **options)

    def client(self, role: str) -> redis.Redis:
        """A client as that role's user."""
        return self.connect(role, self.password_file(role).read_text().strip())

    def denied(self) -> list[str]:
        """What Redis refused anybody: who, the command or key, where."""
        with self.client("admin") as admin:
            rows = admin.execute_command("ACL LOG", 100)
        return [" ".join(str(row[name]) for name in ("username", "object", "context")) for row in rows]


@contextmanager
def secured_redis(folder: Path, binary: str, prefix: str) -> Iterator[SecuredRedis]:
    """Running on entry, gone on exit. Skips under a Redis before 7, which has no selectors."""
    version = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=20).stdout
    found = re.search(r"v=(\d+)", version)
    if found is None or int(found[1]) < 7:
        pytest.skip(f"the users' file needs Redis 7: {version.strip()}")
    done = make_secrets(folder, PDQ_REDIS__KEY_PREFIX=prefix)
    assert done.returncode == 0, done.stderr
    server = SecuredRedis(folder)
    arguments = ["--port", "0", "--unixsocket", str(server.socket), "--save", "", "--loglevel", "debug"]
    log = folder / "redis.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [binary, *arguments, "--aclfile", str(folder / "redis/users.acl")], stdout=output, cwd=folder
        )
    try:
        give_up = time.monotonic() + 20
        with server.connect("probe", "x") as probe:
            while True:
                try:
                    probe.ping()
                    break
                except redis.ConnectionError:
                    assert process.poll() is None and time.monotonic() < give_up, log.read_text()[-2000:]
                    time.sleep(0.01)
        yield server
    finally:
        process.kill()
        process.wait()
