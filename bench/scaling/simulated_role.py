"""One process of a cluster whose compute is sleep: `pdq api`, `pdq prefill` or `pdq decode`, and a model that waits.

Everything around the model is the real thing: queues, blocks, handoff, publishing, relay. A step takes the time it is
told and no processor, so that more workers than cores can be looked at. The KV that travels holds nothing.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# What the fork server imports once.
PRELOAD = [
    "bench.scaling.simulated_role",
    "cli.roles",
    "api.server",
    "prefill_worker.assembly",
    "decode_worker.assembly",
]
TOKEN_ID = 97


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a step takes."""

    prefill_token_s: float  # per prompt token
    decode_step_s: float  # whatever the batch


def play(role: str, environment: Mapping[str, str], log: Path, pace: Pace) -> None:
    """Be `pdq ROLE` in this process."""
    os.setsid()
    os.environ.update(environment)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    if role != "api":
        sleep_in_place_of_computing(pace)
    from cli.__main__ import app

    app([role])


def sleep_in_place_of_computing(pace: Pace) -> None:
    """From now on no model in this process computes."""
    from engine.model_runner import ModelRunner, PrefillChunk
    from engine.sampler import Sampled
    from engine.sequence import Sequence

    def prefill(runner: ModelRunner, chunks: list[PrefillChunk]) -> list[Sampled | None]:
        time.sleep(pace.prefill_token_s * sum(chunk.num_tokens for chunk in chunks))
        sampled = [Sampled(TOKEN_ID, 0.0) if chunk.is_last else None for chunk in chunks]
        for chunk in chunks:
            chunk.sequence.num_computed_tokens += chunk.num_tokens
        return sampled

    def decode(runner: ModelRunner, sequences: list[Sequence]) -> list[Sampled]:
        time.sleep(pace.decode_step_s)
        for sequence in sequences:
            sequence.num_computed_tokens += 1
        return [Sampled(TOKEN_ID, 0.0) for _ in sequences]

    ModelRunner.prefill = prefill  # type: ignore[method-assign,assignment]
    ModelRunner.decode = decode  # type: ignore[method-assign,assignment]
