"""The GPUs as the driver and torch see them. Every figure is asked of NVML or torch; nothing is measured."""

from collections.abc import Iterator

import pynvml
import torch

from bench.doctor.check import Finding, Verdict
from bench.kernels.gpu_types import type_of

MIN_CAPABILITY = 80  # bfloat16 on tensor cores and asynchronous copies
_MOSTLY_FREE = 0.9  # of a GPU's memory; figures of a GPU that others use mean little


def check(device: torch.device) -> Iterator[Finding]:
    """Driver and versions, then a line per GPU. `device` is the one that the other checks use."""
    pynvml.nvmlInit()
    try:
        driver, num_gpus = pynvml.nvmlSystemGetDriverVersion(), pynvml.nvmlDeviceGetCount()
    finally:
        pynvml.nvmlShutdown()
    seen = f"driver {driver}, {num_gpus} GPUs; torch {torch.__version__} for CUDA {torch.version.cuda}"
    if not torch.cuda.is_available():
        remedy = (
            "install a torch that is built for CUDA (TORCH_INDEX=URL make install), of the driver's version or older"
        )
        yield Finding("driver", Verdict.FAIL, f"{seen} sees no device", remedy)
        return
    yield Finding("driver", Verdict.OK, f"{seen} sees {torch.cuda.device_count()} of them")
    for index in range(torch.cuda.device_count()):
        yield describe(torch.device("cuda", index))


def describe(device: torch.device) -> Finding:
    """One GPU: name, capability, memory, and whether its data sheet is known."""
    properties = torch.cuda.get_device_properties(device)
    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    return judge(str(device), properties.name, 10 * properties.major + properties.minor, free_bytes, total_bytes)


def judge(subject: str, name: str, capability: int, free_bytes: int, total_bytes: int) -> Finding:
    """What is thought of a GPU with these facts."""
    said = f"{name}, sm_{capability}, {free_bytes / 2**30:.1f} of {total_bytes / 2**30:.1f} GiB free"
    figures = {"capability": float(capability), "free_bytes": float(free_bytes), "total_bytes": float(total_bytes)}
    if capability < MIN_CAPABILITY:
        return Finding(subject, Verdict.FAIL, said, f"the kernels need sm_{MIN_CAPABILITY} or later", figures)
    if free_bytes < _MOSTLY_FREE * total_bytes:
        return Finding(subject, Verdict.WARN, said, "others use this GPU: end them before the times are read", figures)
    if type_of(name) is None:
        remedy = "none: its data sheet is not in bench/kernels/gpu_types.py, so no bound is predicted for it"
        return Finding(subject, Verdict.OK, said, remedy, figures)
    return Finding(subject, Verdict.OK, said, figures=figures)
