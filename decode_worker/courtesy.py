"""Leaving the cores to prompts that are computed on them, for a part of every step.

Decode and prefill that share cores get one half each by the ledger (`kernels/cores.py`). Where decode steps follow each
other without a pause, a prompt of 1,500 tokens every 2 s is more than the other half can compute, and prompts queue up:
beside 4 streams on two cores of Zen 4 their first token came after 2.1 s with these rests, after 2.5 s with rests only
for prompts that take longer than 0.1 s. Knows no sequences and no queue.
"""

import asyncio
import ctypes
import time

from kernels import cores
from settings.workers import DecodeSettings

LOOK_S = 0.002  # how soon the cores are taken back once nobody wants them


def rest_s(step_s: float, share: float, until_s: float) -> float:
    """How long to rest after a step that took `step_s`: a share of it, unless both together would exceed `until_s`."""
    return max(0.0, min(share * step_s, until_s - step_s))


class Courtesy:
    """A decode worker's. Rests only where the C++ library computes, which alone keeps the ledger."""

    def __init__(self, settings: DecodeSettings, library: ctypes.CDLL | None) -> None:
        """library: by which this process computes; None: it computes otherwise, and never rests."""
        self._share, self._until_s = settings.rest_share, settings.rest_until_ms / 1000
        self._library = library

    def wants_rest(self) -> bool:
        """Whether others want the cores. To be asked before every step."""
        return self._library is not None and self._share > 0 and cores.are_wanted(self._library)

    async def rest(self, step_s: float) -> None:
        """Leave the cores to whoever wants them, after a step that took `step_s`; no longer than somebody does."""
        assert self._library is not None
        cores.leave(self._library)
        end = time.perf_counter() + rest_s(step_s, self._share, self._until_s)
        while (left_s := end - time.perf_counter()) > 0 and cores.are_wanted(self._library):  # noqa: ASYNC110 memory
            await asyncio.sleep(min(left_s, LOOK_S))
