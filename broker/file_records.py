"""Which files there are, and whose; their bytes are in the file store. This file knows neither the store nor HTTP."""

from typing import Any

from redis.asyncio import Redis

from broker.keys import Keys
from messages.batch import StoredFile
from messages.wire import decode, encode


class FileRecords:
    """Every method raises redis errors when Redis stays away."""

    def __init__(self, client: Redis, keys: Keys) -> None:
        self._redis: Any = client  # redis-py types every answer as whatever it might be
        self._keys = keys

    async def add(self, file: StoredFile) -> None:
        """The file is there from now on. May be repeated."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.set(self._keys.stored_file(file.file_id), encode(file))
            pipe.zadd(self._keys.files_of(file.owner), {file.file_id: file.created_ms})
            if file.expires_ms:
                pipe.zadd(self._keys.file_ends(), {file.file_id: file.expires_ms})
            await pipe.execute()

    async def find(self, file_id: str) -> StoredFile | None:
        """The file of that id, whoever's it is."""
        data = await self._redis.get(self._keys.stored_file(file_id))
        return decode(data, StoredFile) if data else None

    async def count(self, owner: str) -> int:
        """How many files the key has."""
        return int(await self._redis.zcard(self._keys.files_of(owner)))

    async def listed(self, owner: str) -> list[StoredFile]:
        """The key's files, the oldest first."""
        file_ids = await self._redis.zrange(self._keys.files_of(owner), 0, -1)
        if not file_ids:
            return []
        found = await self._redis.mget([self._keys.stored_file(file_id.decode()) for file_id in file_ids])
        return [decode(data, StoredFile) for data in found if data]

    async def remove(self, file: StoredFile) -> None:
        """The file is gone from now on. Its bytes are to be removed afterwards."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(self._keys.stored_file(file.file_id))
            pipe.zrem(self._keys.files_of(file.owner), file.file_id)
            pipe.zrem(self._keys.file_ends(), file.file_id)
            await pipe.execute()

    async def expired(self, now_ms: int, at_most: int = 100) -> list[StoredFile]:
        """Files whose time is over, the first ones."""
        file_ids = await self._redis.zrangebyscore(self._keys.file_ends(), "-inf", now_ms, start=0, num=at_most)
        found = [await self.find(file_id.decode()) for file_id in file_ids]
        return [file for file in found if file is not None]
