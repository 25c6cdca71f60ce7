"""A step of a batch, held while it is worked on. Knows leases and statuses; not what the step is."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from batch_worker.work import Work

RENEWALS = 3  # per lease


class Lost(Exception):
    """The step is another's by now, the batch no longer wants it, or this worker stops."""


@asynccontextmanager
async def held_step(work: Work, batch_id: str, step: str, wanted_status: str | None = None) -> AsyncIterator[bool]:
    """Whether the step is ours for the body. It is renewed meanwhile; when it is lost, when the batch leaves
    `wanted_status` or the worker is to stop, the body is cancelled and Lost raised in its place."""
    batches, lease_s = work.broker.batches, work.settings.batch.lease_s
    token = await batches.take_step(batch_id, step, lease_s)
    if token is None:
        yield False
        return
    body = asyncio.current_task()
    assert body is not None
    is_lost = False

    async def keep() -> None:
        nonlocal is_lost
        while True:
            try:
                await asyncio.wait_for(work.stopping.wait(), lease_s / RENEWALS / (2 if wanted_status else 1))
                break
            except TimeoutError:
                pass
            if not await batches.keep_step(batch_id, step, token, lease_s):
                break
            if wanted_status is not None and await batches.status(batch_id) != wanted_status:
                break
        is_lost = True
        body.cancel()

    keeper = asyncio.create_task(keep())
    try:
        yield True
    except asyncio.CancelledError:
        if not is_lost:
            raise
        body.uncancel()
        raise Lost(step) from None
    finally:
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)
        await batches.keep_step(batch_id, step, token, 0)
