"""A step of a batch in progress: the lines of one shard, each run and recorded, then its rows in the file store.

A line is recorded by one script as soon as it is answered. Whoever takes the shard of a dead worker runs the lines that
are not recorded, and of those that still run in the cluster it takes the answers.
"""

import asyncio

from batch_worker.input_lines import lines_from, read_line
from batch_worker.parts import write_part
from batch_worker.rows import row_of
from batch_worker.step_lease import Lost, held_step
from batch_worker.work import Work
from broker.batch_records import BatchView
from messages.batch import BatchStatus
from telemetry import get_logger

log = get_logger()


def step_of(shard: int) -> str:
    """The step's name."""
    return f"shard-{shard}"


async def run_shard(work: Work, batch_id: str, shard: int) -> None:
    """Run what is left of the shard, if nobody else does. What is not done when the batch is cancelled or over stays
    undone; when this worker stops, another goes on."""
    running: dict[int, str] = {}
    try:
        async with held_step(work, batch_id, step_of(shard), BatchStatus.IN_PROGRESS) as is_held:
            view = await work.broker.batches.find(batch_id)
            if not is_held or view is None or view.status is not BatchStatus.IN_PROGRESS:
                return
            if shard in await work.broker.batches.done_shards(batch_id):
                return
            is_repeat = await work.broker.batches.count_taking(batch_id, step_of(shard)) > 1
            await _run_lines(work, view, shard, is_repeat, running)
            rows = await work.broker.batches.rows(batch_id, shard)
            await asyncio.to_thread(write_part, work.store, batch_id, shard, rows)
            await work.broker.batches.close_shard(batch_id, shard)
    except Lost:
        is_wanted = await work.broker.batches.status(batch_id) == BatchStatus.IN_PROGRESS
        log.info("shard_left", batch_id=batch_id, shard=shard, running=len(running), is_wanted=is_wanted)
        if not is_wanted:
            await asyncio.gather(*(work.sender.cancel(request_id) for request_id in running.values()))


async def _run_lines(work: Work, view: BatchView, shard: int, is_repeat: bool, running: dict[int, str]) -> None:
    """`running`: the request ids of the lines that are in the cluster."""
    batch, batches = view.batch, work.broker.batches
    raw_lines = await asyncio.to_thread(_read, work, view, shard)
    recorded = await batches.recorded_lines(batch.batch_id, shard)

    async def run(line: int, raw: bytes) -> None:
        request_id = f"{batch.batch_id}-{line}"
        async with work.free_lines:
            asked = read_line(raw, batch.endpoint)
            running[line] = request_id
            answer = await work.sender.answer(request_id, batch.endpoint, asked.body, is_repeat)
        row = row_of(batch.batch_id, line, asked.custom_id, answer)
        await batches.record_line(batch.batch_id, shard, line, answer.is_completed, row)
        del running[line]

    async with asyncio.TaskGroup() as group:
        for line, raw in enumerate(raw_lines, shard * work.settings.batch.shard_lines):
            if line not in recorded:
                group.create_task(run(line, raw))


def _read(work: Work, view: BatchView, shard: int) -> list[bytes]:
    starts = view.shard_starts
    # By the plan and not by the setting, which may have changed since.
    end = starts[shard + 1] if shard + 1 < len(starts) else None
    with work.store.read(view.batch.input_file_id) as file:
        file.seek(starts[shard])
        content = file.read() if end is None else file.read(end - starts[shard])
    return list(lines_from(content.split(b"\n")))
