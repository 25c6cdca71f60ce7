"""What launchers know of their device: torch's word on a GPU, else the driver's that is compiled for, else an H100."""

from types import SimpleNamespace

import pytest
import torch
import triton

from kernels.gpu.target import capability, num_multiprocessors

CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)


def test_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", {GPU: (12, 0)}.__getitem__)
    properties = {GPU: SimpleNamespace(multi_processor_count=170)}
    monkeypatch.setattr("torch.cuda.get_device_properties", properties.__getitem__)
    assert (capability(GPU), num_multiprocessors(GPU)) == (120, 170)


def test_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (capability(CPU), num_multiprocessors(CPU)) == (90, 132)
    compiling = SimpleNamespace(get_current_target=lambda: SimpleNamespace(arch=80))
    monkeypatch.setattr(triton.runtime, "driver", SimpleNamespace(active=compiling))
    assert capability(CPU) == 80
