"""Leaving the cores to prompts that are computed on them, for a part of every step.

Decode and prefill that share cores get one half each by the ledger (`kernels/cores.py`). Where decode steps follow each
other without a pause, a prompt of 1,500 tokens every 2 s is more than the other half can compute, and prompts queue up:
beside 4 streams on two cores of Zen 4 their first token came after 2.1 s with these rests, after 2.5 s with rests only
for prompts that take longer than 0.1 s. A burst of short prompts goes first altogether: while it is at least as many
prompts that are about to get their first token as streams that wait for their next, a step later costs fewer of them.
Knows no sequences and no queue.
"""

import asyncio
import ctypes
import time

from kernels import cores
from settings.workers import DecodeSettings

LOOK_S = 0.002  # how soon the cores are taken back once nobody wants them


def rest_s(step_s: float, num_running: int, num_prompts: int, settings: DecodeSettings) -> float:
    """How long to rest after a step that took `step_s`, `num_running` streams waiting for the next one, `num_prompts`
    others for their first token, which is near. A share of the step, or as long as those who are fewer may wait."""
    if num_prompts >= num_running:
        return max(0.0, settings.rest_for_burst_ms / 1000 - step_s)
    return max(0.0, min(settings.rest_share * step_s, settings.rest_until_ms / 1000 - step_s))


class Courtesy:
    """A decode worker's. Rests only where the C++ library computes, which alone keeps the ledger."""

    def __init__(self, settings: DecodeSettings, library: ctypes.CDLL | None) -> None:
        """library: by which this process computes; None: it computes otherwise, and never rests."""
        self._settings, self._library = settings, library

    def wants_rest(self) -> bool:
        """Whether others want the cores. To be asked before every step."""
        return self._library is not None and self._settings.rest_share > 0 and cores.are_wanted(self._library)

    async def rest(self, step_s: float, num_running: int) -> None:
        """Leave the cores to whoever wants them, after a step of `num_running` streams that took `step_s`; no longer
        than somebody does."""
        assert self._library is not None
        cores.leave(self._library)
        began = time.perf_counter()
        while cores.are_wanted(self._library):
            wanted_s = rest_s(step_s, num_running, cores.prompts_of_others(self._library), self._settings)
            left_s = began + wanted_s - time.perf_counter()
            if left_s <= 0:
                return
            await asyncio.sleep(min(left_s, LOOK_S))
