"""Which batches there are, whose, and how far each is. This file knows no HTTP, no Celery and no file store.

What changes one is a script or a transaction in which every repeat is harmless: a batch worker may be killed between
any two of them. A step (`plan`, `shard-N`, `finalize`, `webhook`) is worked on under a lease, which keeps two workers
from doing the same work; that no line counts twice does not depend on it.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from redis.asyncio import Redis

from broker.keys import Keys
from broker.scripts import load_script
from messages.batch import Batch, BatchStatus
from messages.wire import decode, encode


@dataclass(frozen=True, slots=True)
class BatchView:
    """A batch and how far it is."""

    batch: Batch
    status: BatchStatus
    total: int
    completed: int
    failed: int
    fields: Mapping[str, str]  # what was set on the way: `STATUS_at` (Unix s), `output_file_id`, `ending`, ...

    @property
    def shard_starts(self) -> list[int]:
        """Byte at which each shard's lines begin in the input; empty before it is planned."""
        return list(orjson.loads(self.fields.get("shard_starts", "[]")))

    @property
    def problems(self) -> list[dict[str, Any]]:
        """What is wrong with the input."""
        return list(orjson.loads(self.fields.get("problems", "[]")))


@dataclass(frozen=True, slots=True)
class BatchTotals:
    """Figures of all batches; `lines` and `webhooks` by outcome, `batches` by the status in which they ended."""

    num_open: int
    num_workers: int
    lines: dict[str, int]
    batches: dict[str, int]
    webhooks: dict[str, int]


class BatchRecords:
    """Every method raises redis errors when Redis stays away."""

    def __init__(self, client: Redis, keys: Keys) -> None:
        self._redis: Any = client  # redis-py types every answer as whatever it might be
        self._keys = keys

    async def create(self, batch: Batch, max_open: int) -> bool:
        """Whether it was made; else its owner has `max_open` that have not ended."""
        keys = self._keys
        owned = [keys.batches_of(batch.owner), keys.open_batches_of(batch.owner)]
        arguments: list[Any] = [batch.batch_id, max_open, batch.created_ms, encode(batch), BatchStatus.VALIDATING]
        made = await load_script("batch_create").run(
            self._redis, [keys.batch(batch.batch_id), keys.open_batches(), *owned], arguments
        )
        return bool(made)

    async def find(self, batch_id: str) -> BatchView | None:
        """The batch of that id, whoever's it is."""
        raw = await self._redis.hgetall(self._keys.batch(batch_id))
        return _view(raw) if raw else None

    async def status(self, batch_id: str) -> BatchStatus | None:
        """Its status; None when there is no such batch any more."""
        raw = await self._redis.hget(self._keys.batch(batch_id), "status")
        return BatchStatus(raw.decode()) if raw else None

    async def page(self, owner: str, after: str | None, limit: int) -> tuple[list[BatchView], bool] | None:
        """Up to `limit` batches, the newest first, from the one after `after` on, and whether there are more. None when
        the key has no batch `after`."""
        of_owner = self._keys.batches_of(owner)
        first = 0
        if after is not None:
            rank = await self._redis.zrevrank(of_owner, after)
            if rank is None:
                return None
            first = int(rank) + 1
        batch_ids = await self._redis.zrevrange(of_owner, first, first + limit)
        found = [await self.find(batch_id.decode()) for batch_id in batch_ids[:limit]]
        return [view for view in found if view is not None], len(batch_ids) > limit

    async def open(self, owner: str | None = None) -> list[BatchView]:
        """The batches that have not ended, of one key or of all, the oldest first."""
        key = self._keys.open_batches() if owner is None else self._keys.open_batches_of(owner)
        found = [await self.find(batch_id.decode()) for batch_id in await self._redis.zrange(key, 0, -1)]
        return [view for view in found if view is not None]

    async def move(
        self,
        batch: Batch,
        status: BatchStatus,
        allowed_from: Sequence[BatchStatus],
        now_ms: int,
        fields: Mapping[str, str | int] | None = None,
    ) -> bool:
        """Go to `status` and set `fields`, if the batch is in one of `allowed_from`; whether it did so."""
        keys = self._keys
        touched = [keys.batch(batch.batch_id), keys.open_batches(), keys.open_batches_of(batch.owner)]
        touched += [keys.ended_batches(), keys.webhooks(), keys.batch_totals()]
        is_end, has_webhook = int(not status.is_open), int(bool(batch.webhook_url))
        arguments: list[Any] = [batch.batch_id, status, f" {' '.join(allowed_from)} ", now_ms, is_end, has_webhook]
        for field, value in (fields or {}).items():
            arguments += [field, value]
        return bool(await load_script("batch_move").run(self._redis, touched, arguments))

    # -- lines -------------------------------------------------------------------------------------------------------

    async def record_line(self, batch_id: str, shard: int, line: int, is_completed: bool, row: bytes) -> bool:
        """What became of a line; whether this call recorded it. It counts from the moment on that this returns."""
        keys = self._keys
        touched = [keys.batch(batch_id), keys.shard_rows(batch_id, shard), keys.done_shards(batch_id)]
        outcome = "completed" if is_completed else "failed"
        arguments: list[Any] = [line, shard, outcome, (b"1" if is_completed else b"0") + row]
        return bool(await load_script("batch_line").run(self._redis, [*touched, keys.batch_totals()], arguments))

    async def recorded_lines(self, batch_id: str, shard: int) -> set[int]:
        """The lines of a shard, not over yet, that are recorded."""
        return {int(line) for line in await self._redis.hkeys(self._keys.shard_rows(batch_id, shard))}

    async def rows(self, batch_id: str, shard: int) -> dict[int, tuple[bool, bytes]]:
        """By line: whether it completed, and its row; of a shard that is not over yet."""
        raw = await self._redis.hgetall(self._keys.shard_rows(batch_id, shard))
        return {int(line): (row[:1] == b"1", row[1:]) for line, row in raw.items()}

    async def close_shard(self, batch_id: str, shard: int) -> None:
        """Its rows are in the file store."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.sadd(self._keys.done_shards(batch_id), shard)
            pipe.delete(self._keys.shard_rows(batch_id, shard))
            await pipe.execute()

    async def done_shards(self, batch_id: str) -> set[int]:
        """The shards that are over."""
        return {int(shard) for shard in await self._redis.smembers(self._keys.done_shards(batch_id))}

    # -- who works on what -------------------------------------------------------------------------------------------

    async def mark_sent(self, batch_id: str, step: str, for_s: float) -> bool:
        """Note that a task for the step goes out; False when one is on its way already."""
        key = self._keys.step_sent(batch_id, step)
        return bool(await self._redis.set(key, 1, nx=True, px=round(for_s * 1000)))

    async def is_taken(self, batch_id: str, steps: Sequence[str]) -> list[bool]:
        """Of each step, whether somebody works on it or a task for it is on its way."""
        if not steps:
            return []
        keys = [self._keys.step_lease(batch_id, step) for step in steps]
        sent = [self._keys.step_sent(batch_id, step) for step in steps]
        held = await self._redis.mget(keys + sent)
        return [held[i] is not None or held[len(steps) + i] is not None for i in range(len(steps))]

    async def take_step(self, batch_id: str, step: str, lease_s: float) -> str | None:
        """A token for `keep_step`; None when another has the step."""
        token = secrets.token_hex(8)
        lease = self._keys.step_lease(batch_id, step)
        if not await self._redis.set(lease, token, nx=True, px=round(lease_s * 1000)):
            return None
        await self._redis.delete(self._keys.step_sent(batch_id, step))
        return token

    async def keep_step(self, batch_id: str, step: str, token: str, lease_s: float) -> bool:
        """Renew the lease (`lease_s` 0: give it back); False when it is no longer ours."""
        key = self._keys.step_lease(batch_id, step)
        return bool(await load_script("batch_lease").run(self._redis, [key], [token, round(lease_s * 1000)]))

    async def count_taking(self, batch_id: str, step: str) -> int:
        """How often the step has been taken, this time included."""
        return int(await self._redis.hincrby(self._keys.batch(batch_id), f"takings:{step}", 1))

    # -- workers, webhooks, what is over -----------------------------------------------------------------------------

    async def attend(self, worker_id: str, now_ms: int, lease_s: float) -> None:
        """The worker lives."""
        await self._redis.zadd(self._keys.batch_workers(), {worker_id: now_ms + round(lease_s * 1000)})
        await self._redis.zremrangebyscore(self._keys.batch_workers(), "-inf", now_ms)

    async def leave(self, worker_id: str) -> None:
        """The worker ends."""
        await self._redis.zrem(self._keys.batch_workers(), worker_id)

    async def num_workers(self, now_ms: int) -> int:
        """How many batch workers live."""
        return int(await self._redis.zcount(self._keys.batch_workers(), now_ms, "+inf"))

    async def due_webhooks(self, now_ms: int) -> list[str]:
        """Ids of the batches whose end is to be told now."""
        due = await self._redis.zrangebyscore(self._keys.webhooks(), "-inf", now_ms, start=0, num=100)
        return [batch_id.decode() for batch_id in due]

    async def count_webhook(self, batch_id: str) -> int:
        """How often it was tried, this time included."""
        return int(await self._redis.hincrby(self._keys.batch(batch_id), "webhook_attempts", 1))

    async def webhook_later(self, batch_id: str, at_ms: int) -> None:
        """It failed, and is tried again."""
        await self._redis.zadd(self._keys.webhooks(), {batch_id: at_ms}, xx=True)

    async def webhook_over(self, batch_id: str, outcome: str) -> None:
        """It is `delivered` or `given_up`."""
        if await self._redis.zrem(self._keys.webhooks(), batch_id):
            await self._redis.hincrby(self._keys.batch_totals(), f"webhooks:{outcome}", 1)

    async def ended_before(self, at_ms: int) -> list[BatchView]:
        """Batches that ended before then, the first ones."""
        batch_ids = await self._redis.zrangebyscore(self._keys.ended_batches(), "-inf", at_ms, start=0, num=100)
        found = [await self.find(batch_id.decode()) for batch_id in batch_ids]
        return [view for view in found if view is not None]

    async def remove(self, batch: Batch) -> None:
        """Forget a batch that has ended."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(self._keys.batch(batch.batch_id), self._keys.done_shards(batch.batch_id))
            pipe.zrem(self._keys.batches_of(batch.owner), batch.batch_id)
            pipe.zrem(self._keys.ended_batches(), batch.batch_id)
            pipe.zrem(self._keys.webhooks(), batch.batch_id)
            await pipe.execute()

    async def totals(self, now_ms: int) -> BatchTotals:
        """What all batches came to so far, and who is there for the rest."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.hgetall(self._keys.batch_totals())
            pipe.zcard(self._keys.open_batches())
            pipe.zcount(self._keys.batch_workers(), now_ms, "+inf")
            counts, num_open, num_workers = await pipe.execute()
        counted: dict[str, dict[str, int]] = {"lines": {}, "batches": {}, "webhooks": {}}
        for name, number in counts.items():
            kind, _, outcome = name.decode().partition(":")
            counted[kind][outcome] = int(number)
        return BatchTotals(num_open=num_open, num_workers=num_workers, **counted)


def _view(raw: Mapping[bytes, bytes]) -> BatchView:
    fields = {name.decode(): value.decode() for name, value in raw.items() if name != b"batch"}
    return BatchView(
        decode(raw[b"batch"], Batch),
        BatchStatus(fields["status"]),
        int(fields["total"]),
        int(fields["completed"]),
        int(fields["failed"]),
        fields,
    )
