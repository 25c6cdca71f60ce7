"""Which GPUs this machine has and which of them reach each other's memory, as the driver's management library says.

Needs no CUDA context and no torch: a worker asks before it has chosen its GPU. Knows nothing of leases.
"""

from dataclasses import dataclass

import pynvml


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU. Its UUID means the same in every container; an index does not."""

    uuid: str
    name: str
    peers: frozenset[str] = frozenset()  # UUIDs of the GPUs whose memory it can read directly


def list_gpus() -> list[Gpu]:
    """The visible GPUs in the driver's order; none where there is no driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no library, no driver, or no device node in this container
        return []
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        uuids = [pynvml.nvmlDeviceGetUUID(handle) for handle in handles]
        return [
            Gpu(
                uuid=uuid,
                name=pynvml.nvmlDeviceGetName(handle),
                peers=frozenset(
                    other_uuid
                    for other, other_uuid in zip(handles, uuids, strict=True)
                    if other_uuid != uuid and _reads_directly(handle, other)
                ),
            )
            for handle, uuid in zip(handles, uuids, strict=True)
        ]
    finally:
        pynvml.nvmlShutdown()


def _reads_directly(gpu: object, other: object) -> bool:
    try:
        # The binding's READ constant is a tuple, by a stray comma of its source; 0 is what the library calls it.
        status: int = pynvml.nvmlDeviceGetP2PStatus(gpu, other, 0)
    except pynvml.NVMLError:
        return False
    return bool(status == pynvml.NVML_P2P_STATUS_OK)
