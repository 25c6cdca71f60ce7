"""The queue of the prompts that decode workers prefill themselves, and how such a worker comes by them.

A job gets here from the prefill queue when a worker looks (broker/lua/seek.lua), or at once when it is created and a
worker waits for one (broker/lua/create.lua); it stays until its sequence has ended or is handed on. Knows no policy.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from broker.bid import Bid
from broker.job_queue import EVERY_CLASS, MAX_BLOCK_MS, JobQueue, QueueEntry, Row, fields_of
from broker.keys import GROUP, LOCAL, Keys
from broker.scripts import load_script
from messages.job import PrefillJob
from messages.request import Priority
from messages.worker_status import Role
from settings.broker import QueueSettings

STANDS = 2  # waits that a bid stands for: who waits again at once has no moment without one


class LocalQueue(JobQueue[PrefillJob]):
    """A JobQueue that is filled by who takes from it."""

    def __init__(
        self,
        client: Redis,
        blocking_client: Redis,
        keys: Keys,
        settings: QueueSettings,
        refuse: Callable[[str, int, str], Awaitable[None]],
    ) -> None:
        super().__init__(client, blocking_client, keys, settings, LOCAL, PrefillJob, refuse)
        self._bids_key, self._sizes_key = keys.bids(), keys.active_sizes()
        self._prefill_keys, self._local_keys = keys.queues(Role.PREFILL), keys.queues(LOCAL)
        # The key of a token stream, around its request id.
        self._before_id, self._after_id = keys.tokens("\n", 0).removesuffix("0").split("\n")

    async def seek(self, worker_id: str, bid: Bid, block_ms: int) -> list[QueueEntry[PrefillJob]]:
        """Prompts that fit the bid and wait for prefill; when there is none, wait up to `block_ms` for one."""
        try:
            rows = await self._seek_or_wait(worker_id, bid, block_ms)
        except ResponseError as error:
            await self._restore_group(error)
            rows = await self._seek_or_wait(worker_id, bid, block_ms)
        return await self._entries(rows)

    async def withdraw(self, worker_id: str) -> None:
        """Nothing is routed to the worker's bid any more; what was is in the queue."""
        await self._redis.hdel(self._bids_key, worker_id)

    async def _seek_or_wait(self, worker_id: str, bid: Bid, block_ms: int) -> list[Row]:
        block_ms = min(block_ms, MAX_BLOCK_MS)
        rows: list[Any] = await load_script("seek").run(
            self._redis,
            [self._bids_key, self._sizes_key, *self._prefill_keys, *self._local_keys],
            [GROUP, worker_id, bid.text(), STANDS * block_ms, self._before_id, self._after_id],
        )
        if rows:
            every = tuple(Priority)
            return [(every[number - 1], entry_id, 1, fields_of(fields)) for number, entry_id, fields in rows]
        return await self._wait(worker_id, block_ms, EVERY_CLASS)
