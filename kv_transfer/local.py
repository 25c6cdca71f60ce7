"""The transport of this host, as the device where the engine computes has it. Knows which there are."""

import torch

from errors import ConfigError, DeviceError
from kv_transfer.driver import Driver
from kv_transfer.host import host_id
from kv_transfer.network import network_kind
from kv_transfer.selection import Place
from kv_transfer.shared_memory import ShmDriver
from settings.kv import TransferSettings


def start_driver(settings: TransferSettings, device: torch.device) -> tuple[Driver, Place]:
    """Shared memory on a CPU, CUDA IPC on a GPU, and where that is. Raises DeviceError, ConfigError."""
    driver: Driver
    if device.type == "cuda":
        from kv_transfer.cuda_device import CudaDevice, CudaFailure
        from kv_transfer.cuda_ipc import CudaIpcDriver

        try:
            gpu = CudaDevice(device.index or 0)
            driver, place = CudaIpcDriver(gpu), Place(host_id(), gpu.uuid, gpu.readable_uuids())
        except (ImportError, CudaFailure) as error:
            raise DeviceError(f"CUDA's driver interface cannot be used: {error}") from error
    else:
        driver, place = ShmDriver(), Place(host_id())
    between_hosts = network_kind(settings, device)
    if settings.require not in (None, driver.kind, between_hosts):
        raise ConfigError(
            f"PDQ_KV_TRANSFER__REQUIRE is {settings.require}, but on {device.type} this worker has {driver.kind}, and "
            f"between hosts {between_hosts or 'nothing'}, as PDQ_KV_TRANSFER__NETWORK is {settings.network}: require "
            f"{driver.kind}, or set the network that {settings.require} is for, or require nothing"
        )
    return driver, place
