"""The broker as one object: connects to Redis, ties the parts together, closes. Knows nothing the parts do."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from redis import Redis as SyncRedis
from redis.asyncio import Redis
from redis.backoff import NoBackoff
from redis.connection import ConnectionPool as SyncConnectionPool
from redis.exceptions import AuthenticationError, ConnectionError, NoPermissionError, RedisError, TimeoutError
from redis.retry import Retry

from broker.address import MasterAddress, parse_address
from broker.batch_records import BatchRecords
from broker.cancels import Cancels
from broker.connection import PROMPT_CLASSES, MasterConnection, SyncMasterConnection
from broker.connection_pool import WaitingPool
from broker.file_records import FileRecords
from broker.inbox import Inbox
from broker.job_queue import MAX_BLOCK_MS, JobQueue
from broker.key_limits import KeyLimits
from broker.keys import Keys
from broker.local_queue import LocalQueue
from broker.master import Locate, locator
from broker.reader_leases import ReaderLeases
from broker.registry import Registry
from broker.request_log import RequestLog
from broker.request_reader import RequestReader
from broker.retry import BoundedRetry, endless_retry
from errors import BrokerError
from messages.job import DecodeJob, PrefillJob
from messages.token_event import FinishReason, TokenEvent
from messages.worker_status import Role
from settings.broker import QueueSettings, RedisSettings, StreamSettings

# What a command raises when Redis is away for longer than the retries last (2 s at least); a worker's never does.
REDIS_AWAY = (ConnectionError, TimeoutError)


@dataclass(frozen=True, slots=True)
class Broker:
    """Everything a process does with Redis."""

    redis: Redis
    blocking_redis: Redis  # every blocking read takes a connection of its own from here
    keys: Keys
    queue_settings: QueueSettings
    stream_settings: StreamSettings
    requests: RequestLog
    request_reader: RequestReader
    prefill_queue: JobQueue[PrefillJob]
    local_queue: LocalQueue
    decode_queue: JobQueue[DecodeJob]
    registry: Registry
    cancels: Cancels
    key_limits: KeyLimits
    readers: ReaderLeases
    files: FileRecords
    batches: BatchRecords

    def inbox(self, worker_id: str) -> Inbox:
        """The inbox of that worker."""
        return Inbox(self.redis, self.blocking_redis, self.keys, worker_id)


def assemble_broker(
    client: Redis,
    blocking_client: Redis,
    key_prefix: str,
    queue: QueueSettings,
    stream: StreamSettings,
) -> Broker:
    """A broker on clients that are there already (fakeredis, in fast tests)."""
    keys = Keys(key_prefix)
    readers = ReaderLeases(client, keys, stream)
    requests = RequestLog(client, keys, stream, readers.lease_ms)

    async def refuse(request_id: str, choice: int, why: str) -> None:
        await requests.finish(
            request_id, choice, TokenEvent(finish_reason=FinishReason.ERROR, error=why, error_status=500)
        )

    return Broker(
        redis=client,
        blocking_redis=blocking_client,
        keys=keys,
        queue_settings=queue,
        stream_settings=stream,
        requests=requests,
        request_reader=RequestReader(client, keys),
        prefill_queue=JobQueue(client, blocking_client, keys, queue, Role.PREFILL, PrefillJob, refuse),
        local_queue=LocalQueue(client, blocking_client, keys, queue, refuse),
        decode_queue=JobQueue(client, blocking_client, keys, queue, Role.DECODE, DecodeJob, refuse),
        registry=Registry(client, keys),
        cancels=Cancels(blocking_client, keys),
        key_limits=KeyLimits(client, keys),
        readers=readers,
        files=FileRecords(client, keys),
        batches=BatchRecords(client, keys),
    )


@asynccontextmanager
async def open_broker(
    redis: RedisSettings, queue: QueueSettings, stream: StreamSettings, is_patient: bool = False
) -> AsyncIterator[Broker]:
    """Connect, hand out the broker, disconnect. Raises BrokerError when Redis cannot be reached or refuses us.

    A command tries for `redis.command_timeout_s`; with `is_patient`, for as long as Redis is away.
    """
    async with _open_async_redis(redis, redis.command_timeout_s, is_patient=False) as first:
        try:
            await first.ping()
        except (RedisError, OSError) as error:
            reason = str(error).rstrip(".")
            raise BrokerError(f"Redis at {display_url(redis.url)} cannot be used: {reason}; {_remedy(error)}") from None
    client = _open_async_redis(redis, redis.command_timeout_s, is_patient)
    blocking_client = _open_async_redis(redis, redis.command_timeout_s + MAX_BLOCK_MS / 1000, is_patient)
    try:
        yield assemble_broker(client, blocking_client, redis.key_prefix, queue, stream)
    finally:
        await client.aclose()
        await blocking_client.aclose()


def _remedy(error: Exception) -> str:
    """What may help against a Redis that cannot be used."""
    if isinstance(error, AuthenticationError | NoPermissionError):
        return "name its user and password with PDQ_REDIS__USERNAME and PDQ_REDIS__PASSWORD_FILE"
    return (
        "start one (`redis-server`; `pdq serve` without --redis-url brings its own), or say where it is with "
        "--redis-url or PDQ_REDIS__URL=redis://HOST:6379/0"
    )


def open_sync_redis(settings: RedisSettings, timeout_s: float | None = None) -> SyncRedis:
    """A blocking client without retries, for a thread that has its own rhythm. Connects at its first command."""
    timeout_s = settings.command_timeout_s if timeout_s is None else min(timeout_s, settings.command_timeout_s)
    options = _connection_options(settings) | {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": min(timeout_s, settings.connect_timeout_s),
        "retry": Retry(NoBackoff(), 0),
    }
    address = parse_address(settings.url)
    if address is None:
        return SyncRedis.from_url(settings.url, **options)
    options = _master_options(settings, address, options)
    return SyncRedis.from_pool(SyncConnectionPool(SyncMasterConnection, **options))


def display_url(url: str) -> str:
    """The URL without its password."""
    url = re.sub(r"//([^:/?]*):[^?]*@", r"//\1:***@", url)
    return re.sub(r"([?&](?:sentinel_)?password=)[^&]*", r"\1***", url)


def _open_async_redis(settings: RedisSettings, timeout_s: float, is_patient: bool) -> Redis:
    options = _connection_options(settings) | {
        "socket_timeout": timeout_s,
        "retry": endless_retry() if is_patient else BoundedRetry(timeout_s),
    }
    address = parse_address(settings.url)
    if address is not None:
        options = _master_options(settings, address, options)
        return Redis.from_pool(WaitingPool(wait_s=timeout_s, connection_class=MasterConnection, **options))
    pool = WaitingPool.from_url(settings.url, wait_s=timeout_s, **options)
    pool.connection_class = PROMPT_CLASSES[pool.connection_class]
    return Redis.from_pool(pool)


def _master_options(settings: RedisSettings, address: MasterAddress, options: dict[str, Any]) -> dict[str, Any]:
    """Those of connections that look for the master themselves."""
    options = address.credentials | {"db": address.db} | options
    credentials: dict[str, str] = {name: options[name] for name in ("username", "password") if name in options}
    locate: Locate = locator(address, Keys(settings.key_prefix).prefix, settings.connect_timeout_s, credentials)
    return options | {"locate": locate}


def _connection_options(settings: RedisSettings) -> dict[str, Any]:
    options: dict[str, Any] = {
        "socket_connect_timeout": settings.connect_timeout_s,
        "decode_responses": False,
        "protocol": 2,
        "driver_info": None,  # no CLIENT SETINFO: one command less to allow, and to wait for
    }
    if settings.username:
        options["username"] = settings.username
    if settings.password_file is not None:
        try:
            options["password"] = settings.password_file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise BrokerError(f"Redis password file {settings.password_file}: {error.strerror}") from None
    return options
