"""The transport of a device, and the start-up failure when another one is required."""

from pathlib import Path

import pytest
import torch

from errors import ConfigError, DeviceError
from kv_transfer.local import start_driver
from settings.kv import TransferSettings
from tests.kv_transfer.fake_cuda import FakeCuda

CPU = torch.device("cpu")


def test_a_cpu_has_shared_memory() -> None:
    driver, place = start_driver(TransferSettings(require="shared_memory"), CPU)
    assert (driver.kind, place.device) == ("shared_memory", "cpu")


def test_what_is_required_and_not_there_stops_the_start() -> None:
    with pytest.raises(ConfigError, match="REQUIRE is cuda_ipc, but on cpu this worker has shared_memory"):
        start_driver(TransferSettings(require="cuda_ipc"), CPU)
    with pytest.raises(ConfigError, match="REQUIRE is nixl, .* PDQ_KV_TRANSFER__NETWORK is none"):
        start_driver(TransferSettings(require="nixl"), CPU)
    with pytest.raises(ConfigError, match="REQUIRE is nccl, .* between hosts gloo, as .*NETWORK is nccl"):
        start_driver(TransferSettings(require="nccl", network="nccl"), CPU)
    start_driver(TransferSettings(require="nixl", network="nixl"), CPU)
    start_driver(TransferSettings(require="gloo", network="nccl"), CPU)


def test_a_gpu_has_cuda_ipc(shm_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda(shm_directory, gpus=(3, 5), peers=frozenset({5}))
    monkeypatch.setattr("kv_transfer.cuda_device.import_module", {"cuda.bindings.driver": fake}.__getitem__)
    driver, place = start_driver(TransferSettings(require="cuda_ipc"), torch.device("cuda"))
    assert (driver.kind, driver.device_of_memory) == ("cuda_ipc", torch.device("cuda", 0))
    assert place.device.startswith("GPU-03030303") and [uuid[:12] for uuid in place.readable] == ["GPU-05050505"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver here")
def test_a_gpu_without_a_driver_is_named() -> None:
    with pytest.raises(DeviceError, match="CUDA's driver interface cannot be used"):
        start_driver(TransferSettings(), torch.device("cuda", 0))
