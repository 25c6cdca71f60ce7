"""Which workers live: their heartbeats under leases that Redis's own clock judges. Knows no queue."""

from typing import Any

from redis.asyncio import Redis

from broker.keys import Keys
from broker.scripts import load_script
from errors import ModelError, WireError
from messages.wire import decode
from messages.worker_status import WorkerStatus
from telemetry import get_logger

log = get_logger()


class Registry:
    """The readers' side; broker/heartbeat.py writes."""

    def __init__(self, client: Redis, keys: Keys) -> None:
        self._redis = client
        self._keys = keys

    async def live(self) -> list[WorkerStatus]:
        """The last status of every worker whose lease stands, by worker id. Prunes the others."""
        answer: list[Any] = await load_script("live_workers").run(
            self._redis, [self._keys.workers(), self._keys.worker_leases()], []
        )
        statuses = []
        for worker_id, data in zip(answer[::2], answer[1::2], strict=True):
            try:
                statuses.append(decode(data, WorkerStatus))
            except WireError as error:
                log.warning("worker_status_undecodable", worker_id=worker_id.decode(errors="replace"), error=str(error))
        return sorted(statuses, key=lambda status: status.worker_id)

    async def find(self, worker_id: str) -> WorkerStatus | None:
        """The last status of one worker; None when it is not registered (any more)."""
        data = await self._redis.hget(self._keys.workers(), worker_id)
        try:
            return decode(data, WorkerStatus) if isinstance(data, bytes) else None
        except WireError as error:
            log.warning("worker_status_undecodable", worker_id=worker_id, error=str(error))
            return None

    async def refuse_mixed(self, model_hash: str, block_size: int) -> None:
        """Whether the live workers serve this very model in blocks of this size. Raises ModelError when one does not.

        A cluster of two models would answer with the text of both: prefill's token from one, decode's from the other.
        """
        for status in await self.live():
            if status.model_hash and (status.model_hash, status.block_size) != (model_hash, block_size):
                raise ModelError(
                    f"worker {status.worker_id} on {status.host} serves model {status.model_hash[:12]} in blocks of "
                    f"{status.block_size} under the same Redis key prefix; this one is {model_hash[:12]} in blocks of "
                    f"{block_size}. Stop that one, or set another PDQ_REDIS__KEY_PREFIX"
                )

    async def leave(self, worker_id: str) -> None:
        """Forget the worker at once."""
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.zrem(self._keys.worker_leases(), worker_id)
        pipeline.hdel(self._keys.workers(), worker_id)
        await pipeline.execute()
