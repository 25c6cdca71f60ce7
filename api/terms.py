"""On what terms a request is served, as its headers say: how urgent it is and for how long it may take.

Pure. The header's words are checked here and nowhere else.
"""

import math
from collections.abc import Mapping

from errors import InvalidRequest
from messages.request import Priority
from settings.api import ApiSettings

PRIORITY, TIMEOUT = "X-Priority", "X-Request-Timeout"


def read_priority(headers: Mapping[str, str]) -> Priority:
    """What X-Priority says; normal without it. Raises InvalidRequest."""
    given = headers.get(PRIORITY)
    if given is None:
        return Priority.NORMAL
    try:
        return Priority(given.strip().lower())
    except ValueError:
        raise InvalidRequest(f"{PRIORITY} must be one of {', '.join(Priority)}, got {given[:40]!r}") from None


def read_timeout_s(headers: Mapping[str, str], settings: ApiSettings) -> float | None:
    """The seconds of X-Request-Timeout, else of the setting; None when there is no limit. Raises InvalidRequest."""
    given = headers.get(TIMEOUT)
    if given is None:
        return settings.request_timeout_s or None
    try:
        seconds = float(given)
    except ValueError:
        raise InvalidRequest(f"{TIMEOUT} must be a number of seconds, got {given[:40]!r}") from None
    if not (math.isfinite(seconds) and 0 < seconds <= settings.max_request_timeout_s):
        raise InvalidRequest(
            f"{TIMEOUT} must be above 0 and at most {settings.max_request_timeout_s:g} s, got {given[:40]!r}"
        )
    return seconds
