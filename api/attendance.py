"""What becomes of requests that nobody reads.

Every unfinished request has a lease (broker/reader_leases.py). Each API process renews those of the requests it reads,
and looks for leases that have run out: those of clients that did not come back, and of processes that died. The first
process to see one cancels the request, or follows it on if it is detached. So a request outlives any process, and none
outlives its time.
"""

import asyncio
import time

from redis.exceptions import RedisError

from api.errors import aborted
from api.generation import follow_unattended
from api.services import Services
from broker.request_log import CancelIf
from errors import WireError
from telemetry import get_logger

log = get_logger()

SWEEP_COUNT = 64


async def attend(services: Services) -> None:
    """Renew and sweep, for ever.

    After a start, and after a time in which Redis could not be reached, nothing is swept for `stream.reconnect_s`:
    readers of other processes could not renew either, and clients could not come back.
    """
    leases, reconnect_s = services.broker.readers, services.settings.stream.reconnect_s
    sweep_from = time.monotonic() + reconnect_s
    while True:
        began = time.monotonic()
        try:
            await leases.renew(services.readings.request_ids)
            if began >= sweep_from:
                await sweep(services)
            is_well = time.monotonic() - began < reconnect_s / 2  # the client repeats commands without a word
        except RedisError as error:
            log.warning("attendance_failed", reason=type(error).__name__)
            is_well = False
        if not is_well:
            sweep_from = time.monotonic() + reconnect_s
        await asyncio.sleep(leases.renew_every_s)


async def sweep(services: Services) -> None:
    """Act once on every request whose lease has run out. Raises RedisError."""
    broker = services.broker
    for request_id in await broker.readers.abandoned(SWEEP_COUNT):
        try:
            request = await broker.request_reader.record(request_id)
        except WireError as error:
            log.error("record_undecodable", request_id=request_id, error=str(error))
            request = None
        if request is None:
            await broker.readers.forget(request_id)
        elif request.is_detached:
            if await broker.readers.attach(request, services.api_id, if_abandoned=True):
                log.info("request_adopted", request_id=request_id)
                services.background.start(follow_unattended(services, request))
        elif await broker.requests.cancel(request, aborted(), CancelIf.ABANDONED):
            log.info("request_abandoned", request_id=request_id)
