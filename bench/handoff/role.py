"""One process of the bench: `pdq prefill` or `pdq decode` with marks, and with a paced model where that is wanted."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.handoff.marks import Marks, mark_worker
from messages.worker_status import Role


@dataclass(frozen=True, slots=True)
class Pace:
    """What a model that computes nothing takes. Its KV has the shape of the real one's."""

    step_s: float  # a decode step, of whatever batch
    token_s: float  # a token of a prompt


def play(role: Role, environment: Mapping[str, str], log: Path, marks_path: Path, pace: Pace | None) -> None:
    """Be `pdq ROLE` in this process; its marks are saved when it ends."""
    from engine.parent_death import die_with_parent

    die_with_parent(os.getppid())
    os.environ.update(environment)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    if pace is not None:
        _set_pace(pace)
    marks = Marks(marks_path)
    mark_worker(role, marks)
    from cli.__main__ import app

    try:
        app([role.value])
    finally:
        marks.save()


def _set_pace(pace: Pace) -> None:
    from engine.model_runner import ModelRunner, PrefillChunk
    from engine.sampler import Sampled
    from engine.sequence import Sequence

    def prefill(runner: ModelRunner, chunks: list[PrefillChunk]) -> list[Sampled | None]:
        time.sleep(pace.token_s * sum(chunk.num_tokens for chunk in chunks))
        sampled: list[Sampled | None] = [Sampled(1, -1.0) if chunk.is_last else None for chunk in chunks]
        for chunk in chunks:
            chunk.sequence.num_computed_tokens += chunk.num_tokens
        return sampled

    def decode(runner: ModelRunner, sequences: list[Sequence]) -> list[Sampled]:
        time.sleep(pace.step_s)
        for sequence in sequences:
            sequence.num_computed_tokens += 1
        return [Sampled(1, -1.0) for _ in sequences]

    ModelRunner.prefill, ModelRunner.decode = prefill, decode  # type: ignore[method-assign, assignment]
