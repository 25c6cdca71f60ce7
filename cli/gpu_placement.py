"""A worker's GPUs before it loads torch's CUDA: lease them, wait while there are none, make them the first devices.

All GPUs stay visible, as a peer's memory can only be mapped by who sees the peer's device.
"""

import asyncio
import os
import socket

from broker.status_board import StatusBoard
from cli.gpu_inventory import list_gpus
from cli.gpu_lease import GpuLease, NoFreeGpu, lease_gpus
from errors import ConfigError
from settings.model import ModelSettings
from settings.workers import GpuSettings
from telemetry import get_logger

log = get_logger()


async def place(gpu: GpuSettings, model: ModelSettings, count: int, board: StatusBoard) -> GpuLease | None:
    """Lease `count` GPUs and put them first in CUDA_VISIBLE_DEVICES; None where the worker computes on a CPU.

    While every GPU is leased the board says so and the worker counts as not ready. Raises StartupError.
    """
    if gpu.lease == "never" or (gpu.lease == "auto" and model.device == "cpu"):
        return None
    visible = list_gpus()
    if not visible:
        return None
    named = [uuid.strip() for uuid in gpu.uuids.split(",") if uuid.strip()]
    unknown = [uuid for uuid in named if uuid not in {one.uuid for one in visible}]
    if unknown:
        raise ConfigError(f"PDQ_GPU__UUIDS: {unknown[0]} is none of {', '.join(one.uuid for one in visible)}")
    allowed = [one for one in visible if not named or one.uuid in named]
    owner = f"{board.worker_id} on {socket.gethostname()}"
    said = ""
    while True:
        try:
            lease = lease_gpus(allowed, count, gpu.share, gpu.lease_dir.expanduser(), owner)
            break
        except NoFreeGpu as error:
            if str(error) != said:
                said = str(error)
                log.warning("waiting_for_gpu", reason=said)
            board.say(f"waiting: {said}")
            await asyncio.sleep(gpu.lease_retry_s)
    others = [one.uuid for one in visible if one.uuid not in lease.uuids]
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join([*lease.uuids, *others])
    board.gpus = tuple(lease.uuids)
    log.info("gpu_leased", uuids=lease.uuids)
    return lease
