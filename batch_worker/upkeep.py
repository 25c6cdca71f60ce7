"""Removes what is over: files whose time has come, batches that ended long ago, parts that no batch needs.

Token streams and records of requests have an expiry in Redis, leases of workers and readers are looked after by workers
and API processes themselves; none of that is done here a second time.
"""

import asyncio

from batch_worker.parts import folder
from batch_worker.work import Work
from broker.deadline import now_ms
from telemetry import get_logger

log = get_logger()


async def sweep(work: Work) -> None:
    """One round."""
    files, batches, store = work.broker.files, work.broker.batches, work.store
    in_use = {view.batch.input_file_id for view in await batches.open()}
    num_files = num_batches = 0
    for file in await files.expired(now_ms()):
        if file.file_id not in in_use:
            await files.remove(file)
            await asyncio.to_thread(store.remove, file.file_id)
            num_files += 1
    for view in await batches.ended_before(now_ms() - 1000 * work.settings.batch.keep_s):
        await batches.remove(view.batch)
        num_batches += 1
    for batch_id in await asyncio.to_thread(store.names, "parts"):
        status = await batches.status(batch_id)
        if status is None or not status.is_open:
            await asyncio.to_thread(store.remove, folder(batch_id))
    if num_files or num_batches:
        log.info("expired_removed", files=num_files, batches=num_batches)
