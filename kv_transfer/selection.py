"""Which way KV travels between two workers: the decision alone, from what both say of themselves. Pure.

Same host: CUDA IPC where the blocks lie on our GPU or on one whose memory we can read, else shared memory. Another host
(or another /dev/shm): the network transports. The first that can do it is used; what comes after it is the fallback.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

from messages.kv_transfer import PoolExport

NETWORK = ("nixl", "nccl", "gloo")  # in order of preference


@dataclass(frozen=True, slots=True)
class Place:
    """Where a receiver computes."""

    host_id: str  # as PoolExport.host_id
    device: str = "cpu"  # or a GPU's UUID
    readable: frozenset[str] = field(default_factory=frozenset)  # UUIDs of the GPUs whose memory that GPU can read


def transports(place: Place, export: PoolExport, able: Collection[str], require: str | None = None) -> list[str]:
    """The kinds to try, best first. `able`: what this process has started; `require`: the only kind that is allowed."""
    kinds = []
    if export.host_id == place.host_id:
        is_near = export.device != "cpu" and place.device != "cpu"
        if is_near and (export.device == place.device or export.device in place.readable):
            kinds.append("cuda_ipc")
        if export.device == "cpu":
            kinds.append("shared_memory")
    kinds += [kind for kind in NETWORK if kind in export.addresses]
    return [kind for kind in kinds if kind in able and require in (None, kind)]
