"""How many KV blocks fit on a GPU beside everything else. Arithmetic alone, and the words when nothing fits."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from errors import DeviceError

LARGEST_FRACTION = 0.95  # above it CUDA itself lacks room


@dataclass(frozen=True, slots=True)
class MemoryReading:
    """What a worst-case step took of a device, in bytes."""

    total: int
    used: int  # by every process, once the step was over: contexts, weights, loaded kernels
    own: int  # the part of `used` that this process's tensors take
    step: int  # most that the step held on top of `used`


class MemoryMeter(Protocol):
    """What measures."""

    def measure(self, run: Callable[[], None]) -> MemoryReading:
        """Run `run` to its end on the device."""


@dataclass(frozen=True, slots=True)
class MemoryShare:
    """What one worker may take of a GPU."""

    fraction: float  # of the GPU's memory, for all workers on it together
    num_workers: int  # that share the GPU

    def pool_bytes(self, reading: MemoryReading, num_steps: int) -> int:
        """What is left for the pool beside weights and `num_steps` steps' working memory; may be negative.

        Alone on the GPU, all that is in use counts. Workers that share it start in any order, so each counts its own
        tensors against its share (their contexts are in what the fraction leaves), and no more than is free.
        """
        steps = reading.step * num_steps
        budget = int(reading.total * self.fraction / self.num_workers)
        if self.num_workers == 1:
            return budget - reading.used - steps
        return min(budget - reading.own, reading.total - reading.used) - steps


def pool_blocks(
    reading: MemoryReading, share: MemoryShare, num_steps: int, block_bytes: int, request_tokens: int, block_size: int
) -> int:
    """Blocks of `block_bytes` that the pool gets. Raises DeviceError when a request of `request_tokens` has no room."""
    num_bytes = share.pool_bytes(reading, num_steps)
    num_blocks = max(0, num_bytes) // block_bytes
    needed = -(-request_tokens // block_size)
    if num_blocks < needed:
        raise DeviceError(
            f"no room for KV: one request of {request_tokens} tokens takes {_gib(needed * block_bytes)} and "
            f"{_gib(max(0, num_bytes))} are left of {share.fraction:g} x {_gib(reading.total)}"
            f"{f' / {share.num_workers} workers' if share.num_workers > 1 else ''}, with {_gib(reading.used)} in use "
            f"({_gib(reading.own)} of it ours) and {_gib(reading.step * num_steps)} of working memory; "
            f"{_remedy(needed * block_bytes - num_bytes, num_blocks * block_size, share, reading)}"
        )
    return num_blocks


def _remedy(missing_bytes: int, tokens_with_room: int, share: MemoryShare, reading: MemoryReading) -> str:
    """With which values a request would have room."""
    fraction = share.fraction + missing_bytes * share.num_workers / reading.total
    remedies = [f"lower PDQ_MODEL__MAX_TOTAL_TOKENS to {tokens_with_room}"] if tokens_with_room else []
    if fraction <= LARGEST_FRACTION:
        remedies.append(f"raise PDQ_KV__GPU_MEMORY_FRACTION to {math.ceil(fraction * 100) / 100:g}")
    if not remedies:
        return "the model needs a larger GPU, or more of them: PDQ_PREFILL__ and PDQ_DECODE__TENSOR_PARALLEL"
    return ", or ".join(remedies)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 30):.2f} GiB"
