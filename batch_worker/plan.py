"""The first step of a batch: its input is looked through and cut into shards, or the batch fails with what is wrong."""

import asyncio

import orjson

from batch_worker.input_lines import Checked, check_lines
from batch_worker.step_lease import held_step
from batch_worker.work import Work
from broker.deadline import now_ms
from file_store import FileGone
from messages.batch import Batch, BatchStatus
from telemetry import get_logger

log = get_logger()

STEP = "plan"


async def plan(work: Work, batch_id: str) -> None:
    """Validate the batch, if nobody has."""
    async with held_step(work, batch_id, STEP) as is_held:
        view = await work.broker.batches.find(batch_id)
        if not is_held or view is None or view.status is not BatchStatus.VALIDATING:
            return
        batch = view.batch
        found = await asyncio.to_thread(_look_through, work, batch)
        before = (BatchStatus.VALIDATING,)
        if found.problems:
            problems = {"problems": orjson.dumps(found.problems).decode()}
            await work.broker.batches.move(batch, BatchStatus.FAILED, before, now_ms(), problems)
            log.info("batch_failed", batch_id=batch_id, problems=len(found.problems))
            return
        fields: dict[str, str | int] = {"total": found.total, "shard_starts": orjson.dumps(found.shard_starts).decode()}
        await work.broker.batches.move(batch, BatchStatus.IN_PROGRESS, before, now_ms(), fields)
        log.info("batch_planned", batch_id=batch_id, lines=found.total, shards=len(found.shard_starts))


def _look_through(work: Work, batch: Batch) -> Checked:
    limits = work.settings.batch
    try:
        with work.store.read(batch.input_file_id) as file:
            return check_lines(file, batch.endpoint, limits.shard_lines, limits.max_lines, limits.max_line_bytes)
    except FileGone as error:
        gone = {"code": "input_file_gone", "message": str(error), "param": "input_file_id", "line": None}
        return Checked(problems=[gone])
