"""The last step of a batch: its output and error files are written, each line in one of them, and it ends.

The files' ids follow from the batch's, so a repeat after a death writes the same files again and no second ones.
"""

import asyncio
from collections.abc import Mapping
from typing import IO

from batch_worker.input_lines import lines_from, read_line
from batch_worker.parts import Rows, folder, read_part
from batch_worker.rows import unrun_row
from batch_worker.step_lease import held_step
from batch_worker.work import Work
from broker.batch_records import BatchView
from broker.deadline import now_ms
from file_store import FileGone
from messages.batch import Batch, BatchStatus, StoredFile
from telemetry import get_logger

log = get_logger()

STEP = "finalize"


async def finalize(work: Work, batch_id: str) -> None:
    """Write the files and end the batch, if nobody has."""
    async with held_step(work, batch_id, STEP) as is_held:
        batches = work.broker.batches
        view = await batches.find(batch_id)
        ending_from = (BatchStatus.FINALIZING, BatchStatus.CANCELLING)
        if not is_held or view is None or view.status not in ending_from:
            return
        ending = _ending(view)
        num_shards = len(view.shard_starts)
        done = await batches.done_shards(batch_id)
        unwritten = {shard: await batches.rows(batch_id, shard) for shard in range(num_shards) if shard not in done}
        files = await asyncio.to_thread(_write, work, view, ending, unwritten)
        for file in files.values():
            await work.broker.files.add(file)
        fields = {f"{kind}_file_id": file.file_id for kind, file in files.items()}
        if await batches.move(view.batch, ending, ending_from, now_ms(), fields):
            log.info("batch_ended", batch_id=batch_id, status=ending, completed=view.completed, failed=view.failed)
        for shard in unwritten:
            await batches.close_shard(batch_id, shard)
        await asyncio.to_thread(work.store.remove, folder(batch_id))


def _ending(view: BatchView) -> BatchStatus:
    if view.status is BatchStatus.CANCELLING:
        return BatchStatus.CANCELLED
    return BatchStatus(view.fields.get("ending", BatchStatus.COMPLETED))


def _write(work: Work, view: BatchView, ending: BatchStatus, unwritten: Mapping[int, Rows]) -> dict[str, StoredFile]:
    """The files that have a line, by `output` and `error`."""
    batch, starts = view.batch, view.shard_starts
    written: dict[str, _Written] = {}
    try:
        with work.store.read(batch.input_file_id) as source:
            line = 0
            for shard, start in enumerate(starts):
                source.seek(start)
                end = starts[shard + 1] if shard + 1 < len(starts) else None
                content = source.read() if end is None else source.read(end - start)
                rows = unwritten[shard] if shard in unwritten else read_part(work.store, batch.batch_id, shard)
                for raw in lines_from(content.split(b"\n")):
                    if line in rows:
                        is_completed, row = rows[line]
                    else:
                        is_completed = False
                        row = unrun_row(batch.batch_id, line, read_line(raw, batch.endpoint).custom_id, ending)
                    kind = "output" if is_completed else "error"
                    if kind not in written:
                        written[kind] = _Written(work, batch, kind)
                    written[kind].write(row)
                    line += 1
    except FileGone:
        log.error("batch_files_lost", batch_id=batch.batch_id)
    finally:
        for each in written.values():
            each.close()
    return {kind: each.stored(work.settings.batch.keep_s) for kind, each in written.items()}


class _Written:
    def __init__(self, work: Work, batch: Batch, kind: str) -> None:
        self._file_id = f"file-{batch.batch_id.removeprefix('batch_')}-{kind}"
        self._owner, self._name = batch.owner, f"{batch.batch_id}_{kind}.jsonl"
        self._file: IO[bytes] = work.store.create(self._file_id)
        self._num_bytes = 0

    def write(self, row: bytes) -> None:
        self._num_bytes += self._file.write(row + b"\n")

    def close(self) -> None:
        self._file.close()

    def stored(self, keep_s: int) -> StoredFile:
        now = now_ms()
        return StoredFile(
            self._file_id, self._owner, self._name, "batch_output", self._num_bytes, now, now + 1000 * keep_s
        )
