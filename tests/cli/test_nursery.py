"""Forks of a nursery are children like any other: ours, with their own session, lines and end."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import psutil
import pytest

from cli.child import ROOT, ChildSpec, child_environment, describe_exit, kill, pdq_command
from cli.forked_child import fork_child, start, wait_until_listening
from cli.janitor import is_alive
from cli.supervisor import Supervisor
from errors import ConfigError
from tests.cli.conftest import Log
from tests.end_to_end.cluster import wait_until

# A worker that finds no Redis waits for one, however long that takes.
NO_REDIS = {"PDQ_REDIS__URL": "redis://127.0.0.1:1/0", "PDQ_LOG__FORMAT": "json"}


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    """Where it takes orders, and its process id; it has loaded everything."""
    path = tmp_path_factory.mktemp("nursery") / "sock"
    command = [sys.executable, "-P", "-m", "cli.nursery", str(path)]
    with subprocess.Popen(command, env=child_environment({})) as process:
        try:
            asyncio.run(wait_until_listening(path))
            assert asyncio.run(outcome(path, "--version"))[0] == 0
            yield path, process.pid
        finally:
            process.kill()


async def outcome(path: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    """The exit code of `pdq ARGUMENTS` as a fork, and what it wrote."""
    running = await fork_child(path, arguments, environment)
    written = await running.output.read()
    code = await running.process.wait()
    running.pipe.close()
    return code, written.decode()


def with_worker(path: Path, body: Callable[[psutil.Process], Awaitable[None]]) -> int:
    """Run `body` beside a fork that is a decode worker; how that one ended, at the latest by our SIGKILL."""

    async def main() -> int:
        running = await fork_child(path, ("decode",), NO_REDIS)
        try:
            await body(psutil.Process(running.process.pid))
        finally:
            kill(running.process)
            code = await running.process.wait()
            running.pipe.close()
        return code

    return asyncio.run(main())


def test_nothing_runs_beside_its_loop_when_it_forks(nursery: tuple[Path, int]) -> None:
    process = psutil.Process(nursery[1])
    assert process.num_threads() == 1, "a thread would not come along, and may hold a lock"
    assert any("libtorch_cpu" in mapped.path for mapped in process.memory_maps())


def test_a_fork_is_the_command_with_its_environment_and_its_own_lines(nursery: tuple[Path, int]) -> None:
    code, written = asyncio.run(outcome(nursery[0], "config", "show", PDQ_KV__NUM_BLOCKS="4711"))
    assert code == 0 and "4711" in written
    code, written = asyncio.run(outcome(nursery[0], "config", "show"))
    assert code == 0 and "4711" not in written, "one fork's environment is another's"


def test_a_start_that_cannot_be_has_its_code_and_its_sentence(nursery: tuple[Path, int]) -> None:
    code, written = asyncio.run(outcome(nursery[0], "decode", PDQ_KV__BLOCK_SIZE="7"))
    assert code == ConfigError.exit_code
    assert written.startswith("pdq: ") and "PDQ_KV__BLOCK_SIZE" in written


def test_a_fork_is_our_child_in_a_session_of_its_own_and_named(nursery: tuple[Path, int]) -> None:
    async def body(worker: psutil.Process) -> None:
        assert worker.ppid() == os.getpid()
        deadline = time.monotonic() + 10
        while "decode" not in worker.cmdline():
            assert time.monotonic() < deadline, worker.cmdline()
            await asyncio.sleep(0.01)
        assert os.getsid(worker.pid) == os.getpgid(worker.pid) == worker.pid

    assert describe_exit(with_worker(nursery[0], body)) == "was killed by SIGKILL"


def test_most_of_what_it_loaded_is_shared(nursery: tuple[Path, int]) -> None:
    async def body(worker: psutil.Process) -> None:
        own = worker.memory_full_info()
        assert own.uss < own.rss / 3

    with_worker(nursery[0], body)


def test_a_fork_dies_with_who_ordered_it(nursery: tuple[Path, int]) -> None:
    program = f"""
import asyncio
from pathlib import Path
from cli.forked_child import fork_child

async def main():
    running = await fork_child(Path({str(nursery[0])!r}), ("decode",), {NO_REDIS!r})
    print(running.process.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert is_alive(pid)
        owner.kill()
    wait_until(lambda: not is_alive(pid), 10, "the worker is gone")


def test_workers_outlive_it_and_the_next_start_needs_none(tmp_path: Path, log: Log) -> None:
    """Also what keeps a worker running: the supervisor, to which a fork is a child like another."""
    path = tmp_path / "sock"

    async def main() -> None:
        supervisor = Supervisor(log.announce, log.write_line, log.pids.append)
        supervisor.was_ready = True
        home = supervisor.keep(ChildSpec("nursery", (sys.executable, "-P", "-m", "cli.nursery", str(path))))
        await wait_until_listening(path)
        worker = supervisor.keep(ChildSpec("decode 0", pdq_command("decode"), NO_REDIS, nursery=path))
        await log.wait_for(lambda log: len(log.pids) == 2, 60)
        nursery, first = home.pid, worker.pid
        assert nursery is not None and first is not None
        os.kill(nursery, signal.SIGKILL)
        await log.wait_for(lambda log: len(log.sentences) == 1)
        assert worker.pid == first and is_alive(first)
        os.kill(first, signal.SIGTERM)
        await log.wait_for(lambda log: len(log.pids) >= 4, 60)
        now = asyncio.Event()
        now.set()
        await supervisor.stop(now)

    asyncio.run(main())
    assert any(sentence.startswith("nursery was killed by SIGKILL") for sentence in log.sentences)
    assert any(sentence.startswith("decode 0 ") for sentence in log.sentences)
    assert not any(is_alive(pid) for pid in log.pids)


def test_where_there_is_none_the_command_is_run(tmp_path: Path) -> None:
    dead = tmp_path / "dead"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(dead))  # and nobody listens

    async def code_of(path: Path) -> int:
        running = await start(ChildSpec("version", pdq_command("--version"), nursery=path))
        assert b"pdq" in await running.output.read()
        code = await running.process.wait()
        running.pipe.close()
        return code

    for path in (dead, tmp_path / "nothing"):
        assert asyncio.run(code_of(path)) == 0
