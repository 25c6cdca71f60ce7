"""Who reads a request: the leases that its readers renew, and what has gone without one for too long.

Every unfinished request has a lease from its creation on. An API process renews those of the requests it reads; one
that runs out says that the request is abandoned, and any process may act on it. This file ends nothing itself.
"""

from collections.abc import Sequence

from redis.asyncio import Redis

from broker.keys import Keys
from broker.scripts import load_script
from messages.request import GenerationRequest
from settings.broker import StreamSettings

RENEWALS_PER_LEASE = 4


class ReaderLeases:
    """Every method raises redis errors when Redis stays away."""

    def __init__(self, client: Redis, keys: Keys, stream: StreamSettings) -> None:
        self._redis = client
        self._keys = keys
        self.renew_every_s = min(1.0, stream.reconnect_s / RENEWALS_PER_LEASE)
        # A reader that dies just before it renews leaves its client all of reconnect_s, too.
        self.lease_ms = round((stream.reconnect_s + self.renew_every_s) * 1000)

    async def attach(self, request: GenerationRequest, api_id: str, *, if_abandoned: bool = False) -> bool:
        """Read a request that runs already: its events go to the relay of `api_id` too, and its lease is renewed.

        False when Redis does not know it, or `if_abandoned` and somebody reads it.
        """
        request_id = request.request_id
        answer = await load_script("attach").run(
            self._redis,
            [self._keys.record(request_id), self._keys.reader_leases()],
            [request_id, api_id, request.api_id, self.lease_ms, int(if_abandoned)],
        )
        return bool(answer)

    async def renew(self, request_ids: Sequence[str]) -> None:
        """Those of `request_ids` that have not ended may each go without a reader for `reconnect_s` from now on."""
        if request_ids:
            await load_script("renew_readers").run(
                self._redis, [self._keys.reader_leases()], [self.lease_ms, *request_ids]
            )

    async def forget(self, request_id: str) -> None:
        """Drop the lease of a request that Redis has no record of."""
        await self._redis.zrem(self._keys.reader_leases(), request_id)

    async def abandoned(self, count: int) -> list[str]:
        """The ids of at most `count` unfinished requests whose lease has run out, the longest abandoned first."""
        answer: list[bytes] = await load_script("abandoned").run(self._redis, [self._keys.reader_leases()], [count])
        return [request_id.decode() for request_id in answer]
