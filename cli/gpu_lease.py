"""Which worker has which GPU: one lock file per GPU in a directory that all workers of a node share.

The kernel lets go of a lock when its holder dies, however it dies, so there is no time limit, nothing to renew and no
second opinion. A worker that wants several GPUs gets all of them or none. Knows no CUDA and no Redis.
"""

import fcntl
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from cli.gpu_inventory import Gpu
from errors import ConfigError, DeviceError


class NoFreeGpu(Exception):
    """Everything that would do is leased; the text says by whom."""


@dataclass(slots=True)
class GpuLease:
    """The GPUs of one worker until `release` or the end of its process."""

    uuids: list[str]
    _locks: list[int]

    def release(self) -> None:
        """Give them back. Harmless when repeated."""
        while self._locks:
            os.close(self._locks.pop())


def lease_gpus(gpus: Sequence[Gpu], count: int, share: int, directory: Path, owner: str) -> GpuLease:
    """Lease `count` of `gpus`, best connected ones first. `share` workers may have the same GPU.

    `owner` is what others are told. Raises NoFreeGpu, and DeviceError when so many GPUs can never be had.
    """
    if len(gpus) < count:
        raise DeviceError(
            f"this worker wants {count} GPUs, and there are {len(gpus)}: lower its TENSOR_PARALLEL (PDQ_PREFILL__ or "
            f"PDQ_DECODE__TENSOR_PARALLEL) to {len(gpus)}, or name more in PDQ_GPU__UUIDS"
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # Held while choosing: of two workers that want two GPUs each, neither is left with one.
        with (directory / "choosing.lock").open("a") as choosing:
            fcntl.flock(choosing, fcntl.LOCK_EX)
            return _lease_while_choosing(gpus, count, share, directory, owner)
    except OSError as error:
        raise ConfigError(f"PDQ_GPU__LEASE_DIR = {directory}: {error.strerror}") from error


def _lease_while_choosing(gpus: Sequence[Gpu], count: int, share: int, directory: Path, owner: str) -> GpuLease:
    locks: dict[str, int] = {}
    holders: list[str] = []
    for gpu in gpus:
        # The sharers' places are tried in turn; every worker of a node must agree on how many there are.
        for place in range(share):
            taken = _try_lock(directory / f"{gpu.uuid}.{place}.lock")
            if isinstance(taken, int):
                locks[gpu.uuid] = taken
                break
            holders.append(taken)
    chosen = choose([gpu for gpu in gpus if gpu.uuid in locks], count)
    wanted = {gpu.uuid for gpu in chosen}
    for uuid in locks.keys() - wanted:
        os.close(locks[uuid])
    if not chosen:
        wants = "no free GPU" if count == 1 else f"no {count} free GPUs"
        raise NoFreeGpu(f"{wants} ({len(holders)}/{len(gpus) * share} leased by {', '.join(holders)})")
    for uuid in wanted:
        os.ftruncate(locks[uuid], 0)
        os.pwrite(locks[uuid], owner.encode(), 0)
    uuids = [gpu.uuid for gpu in chosen]
    return GpuLease(uuids, [locks[uuid] for uuid in uuids])


def choose(free: Sequence[Gpu], count: int) -> list[Gpu]:
    """`count` of the free GPUs with the most direct links among them, the first such; empty when there are too few."""
    best = max(combinations(free, count), key=_num_links, default=())
    return list(best)


def _num_links(group: Sequence[Gpu]) -> int:
    return sum(other.uuid in gpu.peers for gpu in group for other in group)


def _try_lock(path: Path) -> int | str:
    """The locked file's descriptor, or what its holder wrote. Python opens files so that children do not inherit."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 256, 0).decode(errors="replace")
        os.close(descriptor)
        return holder or "a worker that is just starting"
    return descriptor
