"""How much each API key has used, shared by all API processes. This file knows neither HTTP nor where keys come from.

Every step is broker/lua/key_limits.lua, idempotent by the request's nonce. A request in flight is a lease that needs no
renewal: before it has a record it lasts as long as a body may take to come, after that the record tells.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from redis.asyncio import Redis

from broker.keys import Keys
from broker.scripts import Argument, load_script

RECHECK_S = 5.0  # how soon after its API process's death a request that is over stops counting


class Exceeded(StrEnum):
    """Which limit a request does not fit into."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    IN_FLIGHT = "in_flight"


class RecordInUse(Exception):
    """There is a record of this request id already; take another id."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one key may use; 0: no limit."""

    requests_per_min: int = 0
    tokens_per_min: int = 0
    max_in_flight: int = 0

    @property
    def is_any(self) -> bool:
        """Whether there is anything to count."""
        return bool(self.requests_per_min or self.tokens_per_min or self.max_in_flight)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Which limit was met, and in how many seconds the request would fit (0: when another one ends)."""

    exceeded: Exceeded
    retry_after_s: float


class KeyLimits:
    """The meters and leases of every key. Every method raises redis errors when Redis stays away."""

    def __init__(self, client: Redis, keys: Keys) -> None:
        self._redis = client
        self._keys = keys

    async def enter(self, key_id: str, nonce: str, limits: Limits, lease_s: float) -> Refusal | None:
        """Count one more request, in flight for `lease_s` unless it gets a record or leaves; or why it may not."""
        arguments = [round(lease_s * 1000), limits.requests_per_min, limits.max_in_flight]
        return _refusal(await self._run(key_id, nonce, "enter", [], arguments))

    async def reserve(
        self, key_id: str, nonce: str, limits: Limits, request_id: str, num_tokens: int
    ) -> Refusal | None:
        """Take `num_tokens`, and bind the lease to the record that is to be made; or why not. Raises RecordInUse."""
        record = self._keys.record(request_id)
        answer = await self._run(key_id, nonce, "reserve", [record], [limits.tokens_per_min, num_tokens])
        if answer[0] == b"in_use":
            raise RecordInUse(request_id)
        return _refusal(answer)

    async def leave(
        self, key_id: str, nonce: str, limits: Limits, reserved: int = 0, prompt: int = 0, streams: Sequence[str] = ()
    ) -> None:
        """Give back the `reserved` tokens less those of `prompt` and `streams` (keys); all of them without a record.

        A request that goes on by itself stays in flight until its record says that it is over.
        """
        await self._run(key_id, nonce, "leave", streams, [limits.tokens_per_min, reserved, prompt])

    async def _run(self, key_id: str, nonce: str, step: str, more_keys: Sequence[str], more: Sequence[int]) -> Any:
        own_keys = [self._keys.key_meters(key_id), self._keys.key_leases(key_id), self._keys.key_records(key_id)]
        arguments: list[Argument] = [nonce, step, round(RECHECK_S * 1000), *more]
        return await load_script("key_limits").run(self._redis, [*own_keys, *more_keys], arguments)


def _refusal(answer: Any) -> Refusal | None:
    reason, wait_ms = answer
    return Refusal(Exceeded(reason.decode()), wait_ms / 1000) if reason else None
