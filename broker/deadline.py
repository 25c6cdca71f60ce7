"""When a request's time is over, and what is said then. Pure but for `now_ms`.

A deadline is Unix time, set by the API process that admits the request, which also ends the request at that moment by
its own clock. Workers judge by their hosts' clocks and so only `queue.clock_tolerance_s` later: where the API process
has died, and before they spend anything on a job that waited too long.
"""

import time

from errors import DeadlineExceeded
from messages.request import GenerationRequest
from messages.token_event import FinishReason, TokenEvent


def now_ms() -> int:
    """Unix time by this host's clock."""
    return time.time_ns() // 1_000_000


def is_past(request: GenerationRequest, at_ms: int, tolerance_s: float = 0.0) -> bool:
    """Whether the request's deadline lies more than `tolerance_s` before `at_ms`."""
    return bool(request.deadline_ms) and at_ms > request.deadline_ms + tolerance_s * 1000


def deadline_error(request: GenerationRequest) -> DeadlineExceeded:
    """What the client is told."""
    timeout_s = (request.deadline_ms - request.created_ms) / 1000
    return DeadlineExceeded(
        f"the request was not done within its {timeout_s:g} s (Status code: 504): ask for fewer tokens, or give it "
        f"X-Request-Timeout: {2 * timeout_s:g} (without one, PDQ_API__REQUEST_TIMEOUT_S holds)"
    )


def deadline_event(request: GenerationRequest) -> TokenEvent:
    """The same as a terminal event."""
    error = deadline_error(request)
    return TokenEvent(finish_reason=FinishReason.ERROR, error=str(error), error_status=error.status)
