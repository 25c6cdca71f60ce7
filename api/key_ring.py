"""The API keys that count now: read at the start, and again when their file has changed.

Knows the file and the clock; knows no HTTP and no Redis.
"""

import hmac
import time
from collections.abc import Callable
from pathlib import Path

from api.key_file import ApiKey, KeyFileError, hash_of, read_keys
from broker.key_limits import Limits
from settings.api import SecuritySettings
from telemetry import get_logger

log = get_logger()

CHECK_S = 1.0  # how often, at most, the file is looked at


class KeyRing:
    """Every key of one file."""

    def __init__(self, path: Path, defaults: SecuritySettings, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises KeyFileError."""
        self._path = path
        self._defaults = defaults
        self._clock = clock
        self._mark = self._look()
        self._checked_s = clock()
        self._keys = read_keys(path)

    def find(self, presented: bytes) -> ApiKey | None:
        """The key whose text is `presented`; None when there is none, or it is disabled."""
        self._refresh()
        wanted = hash_of(presented)
        found = None
        for key in self._keys:  # all of them: how long it takes must not tell which one matched
            if hmac.compare_digest(wanted, key.sha256):
                found = key
        return None if found is None or found.disabled else found

    def limits_of(self, key: ApiKey) -> Limits:
        """The key's own limits, else the settings'."""
        defaults = self._defaults
        return Limits(
            defaults.requests_per_min if key.requests_per_min is None else key.requests_per_min,
            defaults.tokens_per_min if key.tokens_per_min is None else key.tokens_per_min,
            defaults.max_in_flight if key.max_in_flight is None else key.max_in_flight,
        )

    def _refresh(self) -> None:
        now_s = self._clock()
        if now_s - self._checked_s < CHECK_S:
            return
        self._checked_s = now_s
        mark = self._look()
        if mark == self._mark:
            return
        self._mark = mark
        try:
            self._keys = read_keys(self._path)
        except KeyFileError as error:
            log.error("keys_not_reloaded", reason=str(error), keys=len(self._keys))
        else:
            log.info("keys_reloaded", keys=len(self._keys))

    def _look(self) -> tuple[int, int, int] | None:
        """What differs when the file has changed; None when it cannot be seen."""
        try:
            state = self._path.stat()
        except OSError:
            return None
        return state.st_mtime_ns, state.st_size, state.st_ino


def open_key_ring(settings: SecuritySettings) -> KeyRing | None:
    """The ring, or None where no keys are asked for. Raises KeyFileError."""
    return KeyRing(settings.keys_file, settings) if settings.keys_file is not None else None
