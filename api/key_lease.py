"""One request's share of its API key's limits: taken at the gate, reserved by the length of the prompt, given back.

Knows the broker's meters and what a refusal says; knows no route.
"""

import uuid
from collections.abc import Sequence

from redis.exceptions import RedisError
from starlette.types import Scope

from api.errors import TooManyRequests
from broker.client import Broker
from broker.key_limits import Exceeded, Limits, RecordInUse, Refusal
from errors import InvalidRequest
from telemetry import get_logger

log = get_logger()

GRACE_S = 30.0  # for the way from a whole body to a record


class KeyLease:
    """A request of the key `key_id`."""

    def __init__(self, broker: Broker, key_id: str, limits: Limits, body_timeout_s: float) -> None:
        self.key_id = key_id
        self._broker = broker
        self._limits = limits
        self._lease_s = body_timeout_s + GRACE_S
        self._nonce = uuid.uuid4().hex
        self._reserved, self._prompt = 0, 0
        self._streams: list[str] = []

    async def enter(self) -> None:
        """Count the request. Raises TooManyRequests, RedisError."""
        self._check(await self._broker.key_limits.enter(self.key_id, self._nonce, self._limits, self._lease_s))

    async def reserve(self, request_ids: Sequence[str], num_prompt: int, max_new_tokens: int, n: int) -> list[str]:
        """Take the tokens that the requests may come to, of `num_prompt` prompt tokens together and `n` choices each;
        the ids that they are to have, other ones where the first is in use.

        Raises TooManyRequests, InvalidRequest when it could never fit, RedisError.
        """
        n *= len(request_ids)
        num_tokens = num_prompt + n * max_new_tokens
        limit = self._limits.tokens_per_min
        if 0 < limit < num_tokens:
            raise InvalidRequest(
                f"the request may come to {num_tokens} tokens (prompt {num_prompt} + {n} x max_new_tokens "
                f"{max_new_tokens}), the API key may use {limit} a minute"
            )
        limits = self._broker.key_limits
        try:
            refusal = await limits.reserve(self.key_id, self._nonce, self._limits, request_ids[0], num_tokens)
        except RecordInUse:
            request_ids = [f"{request_id}-{uuid.uuid4().hex[:8]}" for request_id in request_ids]
            refusal = await limits.reserve(self.key_id, self._nonce, self._limits, request_ids[0], num_tokens)
        self._check(refusal)
        self._reserved, self._prompt = num_tokens, num_prompt
        choices = range(n // len(request_ids))
        tokens = self._broker.keys.tokens
        self._streams = [tokens(request_id, choice) for request_id in request_ids for choice in choices]
        return list(request_ids)

    async def leave(self) -> None:
        """Give back what was not used. A Redis that is away costs the key what it reserved, for a minute."""
        limits = self._broker.key_limits
        try:
            await limits.leave(self.key_id, self._nonce, self._limits, self._reserved, self._prompt, self._streams)
        except RedisError as error:
            log.warning("key_lease_kept", key=self.key_id, reason=type(error).__name__)

    def _check(self, refusal: Refusal | None) -> None:
        if refusal is None:
            return
        allowed = {
            Exceeded.REQUESTS: f"{self._limits.requests_per_min} requests a minute",
            Exceeded.TOKENS: f"{self._limits.tokens_per_min} tokens a minute",
            Exceeded.IN_FLIGHT: f"{self._limits.max_in_flight} requests at once",
        }[refusal.exceeded]
        raise TooManyRequests(f"the API key may use {allowed}, please try again later", refusal.retry_after_s)


def lease_of(scope: Scope) -> KeyLease | None:
    """The lease that the gate gave this request; None where there are no limits."""
    lease = scope.get("pdq.lease")
    assert lease is None or isinstance(lease, KeyLease)
    return lease
