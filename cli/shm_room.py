"""Whether shared memory has room for the KV pools of the workers that are to run here, before any of them starts.

A prefill worker cannot do without. A decode worker can, and must not take what a prefill worker needs. What a pool
takes to the byte is a worker's own to know; this is an estimate from above.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from cli.gpu_inventory import list_gpus
from messages.worker_status import Role
from settings.loading import Settings

SHM = "/dev/shm"
HEAD_BYTES = 1 << 20  # more than the head of a pool takes


@dataclass(frozen=True, slots=True)
class ShmRoom:
    """What shared memory has, in bytes."""

    free_bytes: int
    total_bytes: int

    def __str__(self) -> str:
        return f"{SHM} has {self.free_bytes / 2**30:.1f} of {self.total_bytes / 2**30:.1f} GiB free"

    def lacks_for(self, settings: Settings, num_workers: Mapping[Role, int]) -> Role | None:
        """The role whose pools do not fit, prefill's first; None when all do, or when nothing can be said: their size
        is given in blocks."""
        if settings.kv.num_blocks is not None:
            return None
        left = self.free_bytes
        for role in _roles_here(settings):
            left -= num_workers[role] * (settings.kv.pool_bytes + HEAD_BYTES)
            if left < 0:
                return role
        return None

    def remedy(self, settings: Settings, num_workers: Mapping[Role, int]) -> str:
        """With which values the pools of all these would fit."""
        num_pools = sum(num_workers[role] for role in _roles_here(settings))
        fitting = max(0, self.free_bytes // num_pools - HEAD_BYTES) >> 20 << 20
        # What is taken already stays taken.
        wanted = self.total_bytes - self.free_bytes + num_pools * (settings.kv.pool_bytes + HEAD_BYTES)
        lower = f"lower PDQ_KV__POOL_BYTES to {fitting}" if fitting else "free some of it"
        size = f"{-(-wanted >> 30)}g"
        return f"{lower}, or give the container more (SHM_SIZE={size} for compose, `--shm-size={size}` of docker run)"


def _roles_here(settings: Settings) -> tuple[Role, ...]:
    """Whose pools lie in shared memory."""
    is_decode_here = settings.decode.export_pool and settings.decode.tensor_parallel == 1
    return (Role.PREFILL, Role.DECODE) if is_decode_here else (Role.PREFILL,)


def are_pools_in_shm(settings: Settings) -> bool:
    """Whether the workers here compute in host memory; a GPU's pool takes some pages of shared memory."""
    return settings.model.device == "cpu" or not list_gpus()


def shm_room() -> ShmRoom:
    """As it is now."""
    room = os.statvfs(SHM)
    return ShmRoom(room.f_bavail * room.f_frsize, room.f_blocks * room.f_frsize)
