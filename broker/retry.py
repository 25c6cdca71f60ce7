"""How long a command goes on trying while Redis is away. Knows no command.

Every command of ours may be repeated: scripts recognize a repeat, the others do not mind. So all are retried; a process
that answers people gives up soon, a worker that holds sequences does not give up at all.
"""

import asyncio
import builtins
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, TypeVar

from redis.asyncio.retry import Retry
from redis.backoff import EqualJitterBackoff
from redis.exceptions import ConnectionError, TimeoutError

ResultT = TypeVar("ResultT")

_NUM_RETRIES = 8
_CAP_S = 0.5
_BASE_S = 0.05

_is_bounded: ContextVar[bool] = ContextVar("is_bounded", default=False)


def endless_retry() -> Retry:
    """Tries until Redis is back."""
    return Retry(EqualJitterBackoff(cap=_CAP_S, base=_BASE_S), -1)


class BoundedRetry(Retry):
    """Tries a few times and for at most `total_s`, however long each try takes."""

    def __init__(self, total_s: float) -> None:
        super().__init__(EqualJitterBackoff(cap=_CAP_S, base=_BASE_S), _NUM_RETRIES)
        self._total_s = total_s

    async def call_with_retry(
        self,
        do: Callable[[], Awaitable[ResultT]],
        fail: Callable[..., Any],
        is_retryable: Callable[[Exception], bool] | None = None,
        with_failure_count: bool = False,
    ) -> ResultT:
        """`do()`'s result. Raises ConnectionError, TimeoutError."""
        if _is_bounded.get():  # a command that has to connect anew retries within its retry: one clock for both
            return await super().call_with_retry(do, fail, is_retryable, with_failure_count)
        last: list[Exception] = []

        async def note_and_fail(error: Exception, *count: int) -> None:
            last[:] = [error]
            await fail(error, *count)

        _is_bounded.set(True)
        try:
            async with asyncio.timeout(self._total_s):
                return await super().call_with_retry(do, note_and_fail, is_retryable, with_failure_count)
        except builtins.TimeoutError:
            if last and isinstance(last[0], ConnectionError):
                raise last[0] from None
            raise TimeoutError(f"no answer within {self._total_s:g} s") from None
        finally:
            _is_bounded.set(False)  # by value: a generator may be closed in another context than it was run in
