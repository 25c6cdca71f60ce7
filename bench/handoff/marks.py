"""When what happened in a worker: the moments that a handoff consists of, written down beside the worker's own methods.

What is put around them reads the clock and nothing else. The clock is the host's, so that the moments of two processes
can be compared.
"""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from messages.worker_status import Role


class Mark(msgspec.Struct, array_like=True, frozen=True):
    """`name` took from `began_ns` to `ended_ns`, of a request or of nobody in particular."""

    name: str
    began_ns: int
    ended_ns: int
    request_id: str = ""
    amount: int = 0  # tokens of a prefill, sequences of a decode step


class Marks:
    """What one process has seen."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._marks: list[Mark] = []

    def note(self, name: str, began_ns: int, request_id: str = "", amount: int = 0) -> None:
        """It ends now."""
        self._marks.append(Mark(name, began_ns, time.monotonic_ns(), request_id, amount))

    def save(self) -> None:
        """For `read_marks`."""
        self._path.write_bytes(msgspec.json.encode(self._marks))

    def around(self, kind: type, method: str, name: str, told: Callable[..., tuple[str, int]] | None = None) -> None:
        """Note each call of `kind.method`. `told(*arguments)` says of whom it is, and how much."""
        behind = getattr(kind, method)

        @functools.wraps(behind)
        def noted(*arguments: Any, **named: Any) -> Any:
            began_ns = time.monotonic_ns()
            try:
                return behind(*arguments, **named)
            finally:
                self.note(name, began_ns, *(("", 0) if told is None else told(*arguments)))

        @functools.wraps(behind)
        async def noted_async(*arguments: Any, **named: Any) -> Any:
            began_ns = time.monotonic_ns()
            try:
                return await behind(*arguments, **named)
            finally:
                self.note(name, began_ns, *(("", 0) if told is None else told(*arguments)))

        is_async = bool(behind.__code__.co_flags & 0x80)
        setattr(kind, method, noted_async if is_async else noted)


def read_marks(path: Path) -> list[Mark]:
    """What a process saved."""
    return msgspec.json.decode(path.read_bytes(), type=list[Mark])


def mark_worker(role: Role, marks: Marks) -> None:
    """Put the marks into this process, which is about to be a worker of `role`."""
    from broker.intake import Intake
    from decode_worker.admission import Admission
    from decode_worker.batch import Batch
    from decode_worker.shard_receiver import ShardReceiver
    from engine.model_runner import ModelRunner
    from kv_transfer.offers import Offers
    from kv_transfer.sender import KVSender
    from prefill_worker.handoff import Handoff

    if role is Role.PREFILL:
        publish = Handoff.publish

        async def publish_noted(handoff: Handoff, done: list[Any]) -> None:
            for each in done:
                marks.note("first_token", time.monotonic_ns(), each.one.claim.job.request_id)
            await publish(handoff, done)

        Handoff.publish = publish_noted  # type: ignore[method-assign, assignment]
        marks.around(
            ModelRunner, "prefill", "prefill", lambda _, chunks: ("", sum(chunk.num_tokens for chunk in chunks))
        )
        marks.around(KVSender, "checksums", "sums")
        marks.around(Offers, "open", "offer", lambda _, request, *__: (request.request_id, 0))
        marks.around(Intake, "hand_over", "hand_over", lambda _, claim, *__: (claim.job.request_id, 0))
    else:
        marks.around(ModelRunner, "decode", "step", lambda _, sequences: ("", len(sequences)))
        marks.around(Admission, "take_in", "take", lambda _, entry, *__: (entry.job.request_id, 0))
        marks.around(ShardReceiver, "pull", "pull")
        marks.around(Batch, "join", "join", lambda _, one: (one.claim.job.request_id, 0))
