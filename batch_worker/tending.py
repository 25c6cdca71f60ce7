"""Looks after the batches that have not ended: which step of which is due. Deciding is pure; `tend` feeds and does it.

All that a batch needs follows from its record, so nothing is lost with a task, a worker or Celery's queue: what nobody
works on is handed out again a little later. Nor does a task that comes twice do harm, as every step has a lease.
"""

from collections.abc import Collection

from batch_worker import ending, plan
from batch_worker.shard import step_of
from batch_worker.work import Work
from broker.batch_records import BatchView
from broker.deadline import now_ms
from messages.batch import BatchStatus

SENT_FOR_S = 30.0  # a task that nobody has begun after this long is taken for lost


def undone_shards(view: BatchView, done: Collection[int]) -> list[int]:
    """The shards whose rows are not all there."""
    return [shard for shard in range(len(view.shard_starts)) if shard not in done]


def due_steps(view: BatchView, undone: list[int], busy: Collection[str], room: int) -> list[str]:
    """The steps to hand out now. `busy`: those that somebody works on or is about to; `room`: how many more shards the
    workers can begin."""
    if view.status is BatchStatus.VALIDATING:
        return [] if plan.STEP in busy else [plan.STEP]
    if view.status is BatchStatus.IN_PROGRESS:
        return [step for step in map(step_of, undone) if step not in busy][:room]
    # Shards that are still being left would be written about as not run.
    is_quiet = not any(step in busy for step in [*map(step_of, undone), ending.STEP, plan.STEP])
    return [ending.STEP] if is_quiet else []


async def tend(work: Work) -> list[tuple[str, str]]:
    """One look at every open batch and at the webhooks that are due: the batch_id and step of each task to send."""
    batches, limits = work.broker.batches, work.settings.batch
    room = await batches.num_workers(now_ms()) * limits.shards_at_once
    looks: list[tuple[BatchView, list[int], set[str]]] = []
    for view in await batches.open():
        batch_id = view.batch.batch_id
        undone = undone_shards(view, await batches.done_shards(batch_id))
        if view.status is BatchStatus.IN_PROGRESS and (not undone or now_ms() > view.batch.expires_ms):
            ending_as = BatchStatus.EXPIRED if undone else BatchStatus.COMPLETED
            await batches.move(
                view.batch, BatchStatus.FINALIZING, (BatchStatus.IN_PROGRESS,), now_ms(), {"ending": ending_as}
            )
            continue  # the next look finds it quiet
        if view.status is BatchStatus.VALIDATING and now_ms() > view.batch.expires_ms:
            await batches.move(view.batch, BatchStatus.EXPIRED, (BatchStatus.VALIDATING,), now_ms())
            continue
        steps = [plan.STEP, ending.STEP, *map(step_of, undone)]
        busy = {step for step, taken in zip(steps, await batches.is_taken(batch_id, steps), strict=True) if taken}
        room -= sum(step_of(shard) in busy for shard in undone)
        looks.append((view, undone, busy))
    to_send: list[tuple[str, str]] = []
    for view, undone, busy in looks:
        for step in due_steps(view, undone, busy, max(0, room)):
            if await batches.mark_sent(view.batch.batch_id, step, SENT_FOR_S):
                to_send.append((view.batch.batch_id, step))
                room -= step.startswith("shard-")
    for batch_id in await batches.due_webhooks(now_ms()):
        if await batches.mark_sent(batch_id, "webhook", SENT_FOR_S):
            to_send.append((batch_id, "webhook"))
    return to_send
