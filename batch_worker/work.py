"""What every task works with, opened once per batch worker. Knows how the parts fit together, and no task."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx

from batch_worker.line import LineSender
from broker.client import Broker, open_broker
from errors import ConfigError
from file_store import FileStore
from settings.loading import Settings


@dataclass(frozen=True, slots=True)
class Work:
    """The parts. `free_lines` bounds what this worker has in the cluster."""

    settings: Settings
    broker: Broker
    store: FileStore
    sender: LineSender
    free_lines: asyncio.Semaphore
    stopping: asyncio.Event


@asynccontextmanager
async def open_work(settings: Settings) -> AsyncIterator[Work]:
    """Raises BrokerError, ConfigError."""
    batch = settings.batch
    store = FileStore(batch.store)
    headers = {} if batch.api_key_file is None else {"Authorization": f"Bearer {_read(batch.api_key_file)}"}
    limits = httpx.Limits(max_connections=2 * batch.lines_at_once)
    # A line may wait for as long as its batch has time; an API that dies breaks the connection.
    timeout = httpx.Timeout(None, connect=settings.redis.connect_timeout_s)
    client = httpx.AsyncClient(
        base_url=batch.api_url, headers=headers, timeout=timeout, limits=limits, follow_redirects=False, trust_env=False
    )
    async with client, open_broker(settings.redis, settings.queue, settings.stream, is_patient=True) as broker:
        sender = LineSender(client, batch)
        yield Work(settings, broker, store, sender, asyncio.Semaphore(batch.lines_at_once), asyncio.Event())


def _read(path: object) -> str:
    try:
        return open(str(path), encoding="utf-8").read().strip()
    except OSError as error:
        raise ConfigError(f"PDQ_BATCH__API_KEY_FILE = {path}: {error.strerror}") from None
