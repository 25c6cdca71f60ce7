"""The time of a simulated cluster: it stands still until it is told to move, and every module reads it.

Knows which modules read a clock; knows nothing of what they do with it.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bench.chaos.protocol.fiber import pause

EPOCH_S = 1_700_000_000.0  # what `time.time()` says at the beginning
_READERS = ("broker", "prefill_worker", "decode_worker", "engine", "kv_transfer", "fakeredis")


class Clock:
    """Seconds since the beginning. Stands in for the module `time` where it is installed."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        """See time.monotonic."""
        return self.now_s

    def perf_counter(self) -> float:
        """See time.perf_counter."""
        return self.now_s

    def time(self) -> float:
        """See time.time."""
        return EPOCH_S + self.now_s

    def time_ns(self) -> int:
        """See time.time_ns."""
        return int((EPOCH_S + self.now_s) * 1e9)

    def sleep(self, seconds: float) -> None:
        """See time.sleep: on a fiber, until the simulation lets it go on, whenever that is."""
        pause()

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Every loaded module of the cluster, and of the Redis it runs on, reads this clock."""
        modules = [
            module
            for name, module in list(sys.modules.items())
            if name.partition(".")[0] in _READERS and getattr(module, "time", None) is time
        ]
        for module in modules:
            module.time = self  # type: ignore[attr-defined]
        try:
            yield
        finally:
            for module in modules:
                module.time = time  # type: ignore[attr-defined]
