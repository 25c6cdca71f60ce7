"""One process of the bench's cluster: `pdq api`, `pdq prefill` or `pdq decode`, slowed down and with doors.

Forked from a server that holds the imports, so that a killed worker is back in a third of a second and not in four.
What runs is the command itself; what is put around the workers' methods only waits.
"""

import functools
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.chaos.gates import Gates, Phase
from kv_transfer.segment import sweep_segments
from kv_transfer.shared_memory import ShmDriver

# What the fork server imports once.
PRELOAD = ["bench.chaos.role", "cli.roles", "api.server", "prefill_worker.assembly", "decode_worker.assembly"]


@dataclass(frozen=True, slots=True)
class Stage:
    """Where a process plays."""

    log: Path
    gates: Path
    shm: Path  # stands for /dev/shm, so that what one cluster leaves there is told from another's
    step_s: float  # by how much a decode step is longer


def play(role: str, environment: Mapping[str, str], stage: Stage) -> None:
    """Be `pdq ROLE` in this process."""
    os.setsid()
    os.environ.update(environment)
    descriptor = os.open(stage.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    for function in (ShmDriver.__init__, sweep_segments):
        function.__defaults__ = (stage.shm,)
    if role != "api":
        _put_doors(role, Gates(stage.gates), stage.step_s)
    from cli.__main__ import app

    app([role])


def _put_doors(role: str, gates: Gates, step_s: float) -> None:
    from broker.intake import Intake
    from decode_worker.exports import Exports
    from engine.model_runner import ModelRunner
    from engine.sampler import Sampled
    from engine.sequence import Sequence
    from prefill_worker.handoff import Handoff
    from prefill_worker.worker import PrefillWorker

    if role == "prefill":
        _hold(Intake, "next_claims", gates, Phase.QUEUED)
        _hold(PrefillWorker, "compute", gates, Phase.PREFILLING)
        _hold(Handoff, "tell", gates, Phase.FIRST_TOKEN)
        return
    _hold(Intake, "next_entries", gates, Phase.OFFERED)
    _hold(Exports, "find", gates, Phase.PULLING)
    compute = ModelRunner.decode

    def slow(runner: ModelRunner, sequences: list[Sequence]) -> list[Sampled]:
        time.sleep(step_s)
        return compute(runner, sequences)

    ModelRunner.decode = slow  # type: ignore[method-assign,assignment]


def _hold(kind: type, method: str, gates: Gates, phase: Phase) -> None:
    """Let `kind.method` wait at the door first."""
    behind: Callable[..., Awaitable[Any]] = getattr(kind, method)

    @functools.wraps(behind)
    async def held(*arguments: Any, **named: Any) -> Any:
        await gates.wait(phase)
        return await behind(*arguments, **named)

    setattr(kind, method, held)
