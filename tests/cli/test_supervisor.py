"""The supervisor on children that crash, linger, refuse to go, or cannot start."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from cli.child import ROOT, ChildSpec, describe_exit
from cli.janitor import is_alive
from cli.restart import RestartPolicy
from cli.supervisor import Supervisor
from errors import BrokerError, ConfigError, DeviceError, ModelError
from tests.cli.conftest import Log, shell

QUICK = RestartPolicy(first_delay_s=0.05, longest_delay_s=0.2)
# Says what happens to it; `wait` and not `sleep` alone, so that sh runs its trap at once.
OBEDIENT = "trap 'echo ends; exit 0' TERM; echo runs; while :; do sleep 30 & wait $!; done"
STUBBORN = "trap '' TERM; echo runs; while :; do sleep 0.05; done"


def supervise(log: Log, body: Callable[[Supervisor], Awaitable[None]], hurry_up: bool = False) -> None:
    """Run `body` with a supervisor and stop it afterwards."""

    async def main() -> None:
        supervisor = Supervisor(log.announce, log.write_line, log.pids.append, QUICK)
        now = asyncio.Event()
        if hurry_up:
            now.set()
        try:
            await body(supervisor)
        finally:
            await supervisor.stop(now)

    asyncio.run(main())
    assert not any(is_alive(pid) for pid in log.pids)


def test_a_crashing_child_is_restarted_with_growing_delays(log: Log) -> None:
    async def body(supervisor: Supervisor) -> None:
        supervisor.keep(shell("worker 0", "echo crashing; exit 7"))
        await log.wait_for(lambda log: len(log.sentences) >= 4)

    supervise(log, body)
    assert len(set(log.pids)) >= 4
    assert [sentence.rpartition(" in ")[2] for sentence in log.sentences[:4]] == ["0.05 s", "0.1 s", "0.2 s", "0.2 s"]
    assert all(sentence.startswith("worker 0 exited with code 7 after ") for sentence in log.sentences[:4])
    assert log.lines[0] == ("worker 0", "crashing")


def test_a_killed_child_is_restarted_and_named(log: Log) -> None:
    async def body(supervisor: Supervisor) -> None:
        child = supervisor.keep(shell("worker 0", OBEDIENT))
        await log.wait_for(lambda log: len(log.lines) == 1)
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        await log.wait_for(lambda log: log.lines.count(("worker 0", "runs")) == 2)

    supervise(log, body)
    assert "worker 0 was killed by SIGKILL" in log.sentences[0]


@pytest.mark.parametrize("kind", [ConfigError, DeviceError, ModelError, BrokerError])
def test_a_start_that_cannot_be_is_a_failure_and_no_restart(
    log: Log, kind: type[ConfigError | DeviceError | ModelError | BrokerError]
) -> None:
    async def body(supervisor: Supervisor) -> None:
        supervisor.keep(shell("decode 0", f"echo 'pdq: there is a reason' >&2; exit {kind.exit_code}"))
        error = await asyncio.wait_for(supervisor.failure, 20)
        assert type(error) is kind
        assert str(error) == "decode 0 could not start: there is a reason"

    supervise(log, body)
    assert len(log.pids) == 1


def test_once_ready_even_a_startup_error_is_followed_by_a_restart(log: Log) -> None:
    async def body(supervisor: Supervisor) -> None:
        supervisor.was_ready = True
        supervisor.keep(shell("decode 0", "exit 5"))
        await log.wait_for(lambda log: len(log.pids) >= 2)
        assert not supervisor.failure.done()

    supervise(log, body)


def test_children_end_in_their_order(log: Log) -> None:
    async def body(supervisor: Supervisor) -> None:
        slow = OBEDIENT.replace("echo ends", "sleep 0.2; echo ends")
        supervisor.keep(shell("redis", OBEDIENT, stop_order=2))
        supervisor.keep(shell("decode 0", slow, stop_order=1))
        supervisor.keep(shell("prefill 0", slow, stop_order=1))
        supervisor.keep(shell("api", slow, stop_order=0))
        await log.wait_for(lambda log: len(log.lines) == 4)

    supervise(log, body)
    ended = [name for name, line in log.lines if line == "ends"]
    assert (ended[0], set(ended[1:3]), ended[3]) == ("api", {"prefill 0", "decode 0"}, "redis")
    assert log.sentences == []  # an end that was asked for is no crash


def test_who_ignores_sigterm_is_killed_at_its_time(log: Log) -> None:
    began = 0.0

    async def body(supervisor: Supervisor) -> None:
        nonlocal began
        supervisor.keep(shell("api", STUBBORN, stop_order=0, stop_within_s=0.3))
        supervisor.keep(shell("decode 0", OBEDIENT, stop_order=1, stop_within_s=20))
        await log.wait_for(lambda log: len(log.lines) == 2)
        began = time.monotonic()

    supervise(log, body)
    assert 0.3 <= time.monotonic() - began < 10
    assert log.sentences == ["api did not end in 0.3 s; killed"]
    assert ("decode 0", "ends") in log.lines  # the others still got their chance


def test_insisting_kills_at_once(log: Log) -> None:
    began = 0.0

    async def body(supervisor: Supervisor) -> None:
        nonlocal began
        for number in range(2):
            supervisor.keep(shell(f"decode {number}", STUBBORN, stop_order=number, stop_within_s=60))
        await log.wait_for(lambda log: len(log.lines) == 2)
        began = time.monotonic()

    supervise(log, body, hurry_up=True)
    assert time.monotonic() - began < 10


def test_stop_does_not_wait_for_a_back_off(log: Log) -> None:
    async def main() -> float:
        supervisor = Supervisor(log.announce, log.write_line, policy=RestartPolicy(first_delay_s=60))
        supervisor.keep(shell("worker 0", "exit 1"))
        await log.wait_for(lambda log: len(log.sentences) == 1)
        began = time.monotonic()
        await supervisor.stop(asyncio.Event())
        return time.monotonic() - began

    assert asyncio.run(main()) < 10


def test_a_command_that_does_not_exist_is_told(log: Log) -> None:
    async def body(supervisor: Supervisor) -> None:
        supervisor.keep(ChildSpec("redis", ("/does/not/exist",)))
        await log.wait_for(lambda log: bool(log.sentences))

    supervise(log, body)
    assert log.lines[0] == ("redis", "cannot run /does/not/exist: No such file or directory")
    assert "exited with code 127" in log.sentences[0]


def test_what_a_child_leaves_behind_goes_with_it(log: Log) -> None:
    async def body(supervisor: Supervisor) -> None:
        supervisor.keep(shell("worker 0", "sleep 1000 & echo $!; exit 1"))
        await log.wait_for(lambda log: len(log.pids) >= 2)

    supervise(log, body)
    orphans = [int(line) for _, line in log.lines]
    assert orphans
    deadline = time.monotonic() + 5
    while any(is_alive(pid) for pid in orphans):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_lines_longer_than_the_buffer_come_through(log: Log) -> None:
    num_bytes = 3 << 20

    async def body(supervisor: Supervisor) -> None:
        supervisor.keep(shell("api", f"head -c {num_bytes} /dev/zero | tr '\\0' x; echo; echo end; sleep 60"))
        await log.wait_for(lambda log: ("api", "end") in log.lines)

    supervise(log, body, hurry_up=True)
    assert sum(len(line) for _, line in log.lines) == num_bytes + len("end")


def test_a_killed_supervisor_leaves_no_child(tmp_path: Path) -> None:
    """SIGKILL: no handler runs, so the kernel has to end the children, even those that ignore every signal they can."""
    state_dir = tmp_path / "state"
    state_dir.mkdir()
    program = f"""
import asyncio, sys
from pathlib import Path
from cli.child import ChildSpec
from cli.janitor import Janitor
from cli.supervisor import Supervisor

async def main():
    janitor = Janitor(Path({str(state_dir)!r}))
    def started(pid):
        janitor.note(pid)
        print("pid", pid, flush=True)
    supervisor = Supervisor(print, lambda name, line: print(line, flush=True), started)
    for number in range(2):
        supervisor.keep(ChildSpec(f"w{{number}}", ("/bin/sh", "-c", {STUBBORN!r})))
    await asyncio.Event().wait()

asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pids, num_running = [], 0
        while num_running < 2:
            line = owner.stdout.readline()
            assert line, "the owner ended"
            if line.startswith("pid"):
                pids.append(int(line.split()[1]))
            num_running += line == "runs\n"
        assert all(is_alive(pid) for pid in pids)
        owner.kill()
    deadline = time.monotonic() + 10
    while any(is_alive(pid) for pid in pids) or state_dir.exists():
        assert time.monotonic() < deadline, "a child or the state directory outlived the supervisor"
        time.sleep(0.02)


def test_exits_are_put_in_words() -> None:
    assert describe_exit(1) == "exited with code 1"
    assert describe_exit(-9) == "was killed by SIGKILL"
