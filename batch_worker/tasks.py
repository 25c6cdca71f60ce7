"""The tasks: three names, and what each does in the work loop."""

from typing import Any

from celery import Celery

from batch_worker import ending, plan, webhook
from batch_worker.celery_app import STEP, SWEEP, TEND
from batch_worker.shard import run_shard
from batch_worker.tending import tend
from batch_worker.upkeep import sweep
from batch_worker.work import Work
from batch_worker.work_loop import WorkLoop

SHARD_PREFIX = "shard-"


async def do_step(work: Work, batch_id: str, step: str) -> None:
    """One step of a batch. A name that is none of ours is refused: whoever writes to Redis may have made it up."""
    if step == plan.STEP:
        await plan.plan(work, batch_id)
    elif step == ending.STEP:
        await ending.finalize(work, batch_id)
    elif step == webhook.STEP:
        await webhook.tell(work, batch_id)
    elif step.startswith(SHARD_PREFIX) and step.removeprefix(SHARD_PREFIX).isdigit():
        await run_shard(work, batch_id, int(step.removeprefix(SHARD_PREFIX)))
    else:
        raise ValueError(f"{step!r} is no step of a batch")


def register(app: Celery, loop: WorkLoop) -> None:
    """Make them tasks of `app` that run in `loop`."""

    def tend_batches() -> None:
        for batch_id, step in loop.run(tend):
            app.send_task(STEP, args=(batch_id, step))

    def run_step(batch_id: str, step: str) -> None:
        loop.run(lambda work: do_step(work, batch_id, step))

    def sweep_expired() -> None:
        loop.run(sweep)

    named: dict[str, Any] = {TEND: tend_batches, STEP: run_step, SWEEP: sweep_expired}
    for name, function in named.items():
        app.task(function, name=name)
