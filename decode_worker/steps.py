"""The steps of a decode worker on the thread that computes them, one at a time.

While one is computed the next one of the same batch may be put behind it: then the thread goes on by itself, and the
loop's waking up, two switches of threads and what the loop does between them (0.7 ms of 10 at batch 1 on two cores)
cost no step anything. It does not go on where a sequence ends by the step, or where the loop is needed. Knows the
engine and who runs; knows no broker and no blocks.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

from decode_worker.output import Output, take_over
from decode_worker.running import Running
from engine.model_runner import ModelRunner


@dataclass(slots=True, eq=False)
class Step:
    """One token for each of a batch."""

    batch: tuple[Running, ...]
    lengths: tuple[int, ...]  # tokens of each sequence as it begins
    outputs: "asyncio.Future[list[Output]]" = field(init=False)  # of none where it was not computed
    following: "Step | None" = None  # which is computed right after it, if `goes_on`
    goes_on: bool = False  # valid when it is computed


class Steps:
    """One per worker; its methods are for the loop."""

    def __init__(self, runner: ModelRunner, thread: Executor, needs_loop: Callable[[], bool]) -> None:
        """`thread`: of one thread. `needs_loop`: asked on it as a step ends, whether the next one is to wait."""
        self._runner, self._thread, self._needs_loop = runner, thread, needs_loop

    def begin(self, batch: Sequence[Running]) -> Step:
        """Compute a step; nothing is computed now."""
        step = Step(tuple(batch), tuple(one.sequence.num_tokens for one in batch))
        step.outputs = asyncio.get_running_loop().run_in_executor(self._thread, self._compute, step)
        return step

    def follow(self, step: Step) -> None:
        """Put the next step of the same batch behind `step`, which is being computed and whose batch has the blocks for
        it. Unless `step.goes_on` in the end it is not computed, and is to be forgotten."""
        step.following = Step(step.batch, tuple(length + 1 for length in step.lengths))
        step.following.outputs = asyncio.get_running_loop().run_in_executor(self._thread, self._go_on, step)

    def _compute(self, step: Step) -> list[Output]:
        """On the thread."""
        sampled = self._runner.decode([one.sequence for one in step.batch])
        outputs = take_over(step.batch, sampled, self._runner.eos_token_ids)
        ends = any(output.is_last for output in outputs)
        step.goes_on = step.following is not None and not ends and not self._needs_loop()
        return outputs

    def _go_on(self, before: Step) -> list[Output]:
        """On the thread, after `before`."""
        assert before.following is not None
        return self._compute(before.following) if before.goes_on else []
