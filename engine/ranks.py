"""The other ranks of a tensor-parallel worker, as rank 0's process has them: started, told each step, watched, ended.

Every rank is a child process that the kernel kills with this one. The whole is worth nothing without each of its
parts: when a rank ends by itself, or a step takes longer than `timeout_s`, all of them are killed and whoever waits for
them gets RankLost. Knows processes and pipes; what a rank computes is told in `engine/step.py`.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from types import TracebackType
from typing import NoReturn

import torch
from torch._C._distributed_c10d import FileStore

from engine.process_group import GroupCommunicator
from engine.rank_messages import (
    Here,
    Loaded,
    MessageT,
    Pull,
    Pulled,
    RankMessage,
    Ready,
    Serve,
    Start,
    StartFailed,
    decode,
    encode,
)
from engine.step import Step
from engine.tensor_parallel import Shard
from errors import ConfigError, DeviceError, ModelError, RankLost, StartupError
from messages.kv_transfer import PoolExport
from settings.loading import Settings
from telemetry import get_logger

log = get_logger()

ROOT = Path(__file__).resolve().parent.parent
_PARENT_DEATH = ROOT / "engine" / "parent_death.py"
_BY_EXIT_CODE: dict[int, type[StartupError]] = {kind.exit_code: kind for kind in (ConfigError, DeviceError, ModelError)}

_CHECK_S = 0.25  # how often the watch looks at the clock
_NOTICE_S = 5.0  # how long after an error in a step its cause may take to show
_LAST_WORDS_S = 0.2  # when one rank ends, those that waited for it end too; this long until the culprit is looked for
_UNWIND_S = 10.0  # how long our own part of a step may go on without the others; then we hang ourselves


@dataclass(eq=False, slots=True)
class _Rank:
    number: int
    process: subprocess.Popen[bytes]
    steps: Connection
    pulls: Connection

    def describe_end(self) -> str | None:
        """How the process ended, if it has."""
        code = self.process.poll()
        if code is None:
            return None
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
        return f"rank {self.number} (pid {self.process.pid}) {how}"


@dataclass(eq=False)
class Ranks:
    """Ranks 1 and up. `start`, `join`, `num_blocks`, `serve`; then `step` and `pull`; `close` at any time."""

    timeout_s: float
    _ranks: list[_Rank]
    _store_dir: tempfile.TemporaryDirectory[str]
    on_lost: Callable[[], object] = lambda: None  # is called on a thread of its own
    failure: RankLost | None = None
    _communicator: GroupCommunicator | None = None
    _deadline: float | None = None  # of the step that goes on, time.monotonic()
    _between_steps: threading.Event = field(default_factory=threading.Event)
    _lost: threading.Event = field(default_factory=threading.Event)
    _closing: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _watch_thread: threading.Thread | None = None

    @classmethod
    def start(cls, module: str, num_ranks: int, worker_id: str, num_threads: int, settings: Settings) -> "Ranks":
        """Start ranks 1 .. num_ranks - 1, each `python -m module`; returns at once.

        Call it on the main thread: the kernel counts the death of the starting thread as the parent's.
        """
        store_dir = tempfile.TemporaryDirectory(prefix="pdq-ranks-")
        ranks = cls(settings.model.rank_timeout_s, [], store_dir)
        ranks._between_steps.set()
        said = settings.model_dump_json().encode()
        try:
            for number in range(1, num_ranks):
                rank = _start_process(module, number)
                ranks._ranks.append(rank)
                shard = Shard(number, num_ranks)
                rank.steps.send_bytes(encode(Start(said, worker_id, shard, num_threads, ranks._store_path)))
        except OSError:
            ranks.close()
            raise
        return ranks

    @property
    def num_ranks(self) -> int:
        """Ours included."""
        return len(self._ranks) + 1

    @property
    def pids(self) -> list[int]:
        """Process ids, rank 1's first."""
        return [rank.process.pid for rank in self._ranks]

    @property
    def _store_path(self) -> str:
        return f"{self._store_dir.name}/store"

    # -- starting ------------------------------------------------------------------------------------------------

    def join(self, device: torch.device) -> GroupCommunicator:
        """Form the process group with them; we compute on `device`. Raises StartupError."""
        self._collect(Here)
        shard = Shard(0, self.num_ranks)
        try:
            communicator = GroupCommunicator(shard, FileStore(self._store_path), device, 2 * self.timeout_s)
        except RuntimeError as error:
            raise DeviceError(f"the {shard.num_ranks} ranks of this worker cannot connect: {error}") from error
        self._communicator = communicator
        if device.type == "cpu":  # Gloo has no more use for it; NCCL's watchdog may look at its store at any time
            self._store_dir.cleanup()
        return communicator

    def num_blocks(self) -> int:
        """Wait until all have loaded. The blocks for which every one of them has room. Raises StartupError."""
        return min(loaded.num_blocks for loaded in self._collect(Loaded))

    def serve(self, num_blocks: int) -> list[PoolExport]:
        """Have them make their pools. What they export, rank 1's first; from here on they are watched.

        Raises StartupError.
        """
        for rank in self._ranks:
            self._send_while_starting(rank, Serve(num_blocks))
        exports = [ready.export for ready in self._collect(Ready)]
        self._watch_thread = threading.Thread(target=self._watch, name="rank-watch", daemon=True)
        self._watch_thread.start()
        return [export for export in exports if export is not None]

    def _send_while_starting(self, rank: _Rank, message: RankMessage) -> None:
        try:
            rank.steps.send_bytes(encode(message))
        except OSError:
            pass  # it has ended; the next message that it owes says so

    def _collect(self, kind: type[MessageT]) -> list[MessageT]:
        """One message of `kind` from each."""
        collected: list[MessageT] = []
        for rank in self._ranks:
            try:
                message = decode(rank.steps.recv_bytes())
            except (EOFError, OSError):
                rank.process.wait()
                raise DeviceError(f"{rank.describe_end()} before it could start") from None
            if isinstance(message, StartFailed):
                error = _BY_EXIT_CODE.get(message.exit_code, StartupError)
                raise error(f"rank {rank.number}: {message.reason}")
            assert isinstance(message, kind), f"rank {rank.number} said {message}, not {kind}"
            collected.append(message)
        return collected

    # -- serving -------------------------------------------------------------------------------------------------

    @contextmanager
    def step(self, step: Step) -> Iterator[None]:
        """Have every rank compute the step while we do. Raises RankLost, on entering or on leaving."""
        if self.failure is not None:
            raise self.failure
        self._deadline = time.monotonic() + self.timeout_s
        self._between_steps.clear()
        try:
            message = encode(step)
            for rank in self._ranks:
                rank.steps.send_bytes(message)
            yield
        except (OSError, RuntimeError) as error:  # RuntimeError is what torch raises when a peer is gone
            self._raise_cause(error)
        finally:
            self._deadline = None
            self._between_steps.set()
        if self.failure is not None:  # NCCL gives up without an error, and with garbage
            raise self.failure

    @contextmanager
    def pull(self, pull: Pull) -> Iterator[list[str]]:
        """Have every rank pull its part while we do. Gives a list that on leaving holds why some could not.

        Leaves only when all have ended. One thread at a time. Raises RankLost.
        """
        failures: list[str] = []
        try:
            message = encode(pull)
            for rank in self._ranks:
                rank.pulls.send_bytes(message)
            try:
                yield failures
            finally:
                deadline = time.monotonic() + self.timeout_s
                for rank in self._ranks:
                    if not rank.pulls.poll(max(0.0, deadline - time.monotonic())):
                        self._lose(f"rank {rank.number} has not pulled within {self.timeout_s:g} s")
                    pulled = decode(rank.pulls.recv_bytes())
                    assert isinstance(pulled, Pulled)
                    if pulled.failure:
                        failures.append(f"rank {rank.number}: {pulled.failure}")
        except (OSError, EOFError) as error:
            if not self._lost.wait(_NOTICE_S):
                self._lose("a rank no longer pulls")
            self._raise_cause(error)

    def _raise_cause(self, error: Exception) -> NoReturn:
        """A pipe or a group broke: because a rank is lost, once the watch has seen it; else the error is our own."""
        self._lost.wait(_NOTICE_S)
        raise self.failure or error from error

    def _watch(self) -> None:
        connections: list[Connection] = [rank.steps for rank in self._ranks]
        while not self._closing.is_set():
            if wait(connections, timeout=_CHECK_S):  # they say nothing any more: this is an end
                self._closing.wait(_LAST_WORDS_S)
                if not self._closing.is_set():
                    ends = [end for rank in self._ranks if (end := rank.describe_end())]
                    self._lose(", ".join(ends) or "a rank has closed its pipe")
                return
            deadline = self._deadline
            if deadline is not None and time.monotonic() > deadline:
                self._lose(f"a step of {self.num_ranks} ranks was not over within {self.timeout_s:g} s")
                return

    def _lose(self, reason: str) -> None:
        """Once: end the rest, so that nobody waits for them; then see to it that we do not hang either."""
        with self._lock:
            if self.failure is not None:
                return
            self.failure = RankLost(reason)
        log.error("rank_lost", reason=reason)
        self._lost.set()
        self._kill()
        if self._communicator is not None:
            self._communicator.abort()
        self.on_lost()
        if not self._between_steps.wait(_UNWIND_S):
            # Whoever hangs here keeps renewing his leases, and his jobs would never be reclaimed.
            log.error("step_hangs", unwind_s=_UNWIND_S)
            os._exit(1)

    # -- ending --------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End them. Harmless when repeated."""
        self._closing.set()
        if self._watch_thread is not None and self._watch_thread is not threading.current_thread():
            self._watch_thread.join()
        for rank in self._ranks:
            rank.steps.close()
            rank.pulls.close()
        give_up = time.monotonic() + 2.0
        for rank in self._ranks:
            try:  # an end of pipe lets it end by itself, and remove the name of its pool
                rank.process.wait(max(0.0, give_up - time.monotonic()))
            except subprocess.TimeoutExpired:
                pass
        self._kill()
        self._store_dir.cleanup()

    def _kill(self) -> None:
        for rank in self._ranks:
            rank.process.kill()
        for rank in self._ranks:
            rank.process.wait()

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _start_process(module: str, number: int) -> _Rank:
    ours, theirs = zip(Pipe(), Pipe(), strict=True)
    descriptors = [connection.fileno() for connection in theirs]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        process = subprocess.Popen(
            [
                *(sys.executable, "-I", "-S", str(_PARENT_DEATH), str(os.getpid())),
                *(sys.executable, "-P", "-m", module, *map(str, descriptors)),
            ],
            stdin=subprocess.DEVNULL,
            pass_fds=descriptors,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
    finally:
        for connection in theirs:
            connection.close()
    return _Rank(number, process, *ours)
