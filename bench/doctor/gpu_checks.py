"""What `pdq doctor --gpu` checks, in this order, by title. Each is a function of the device; here is their table."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch

from bench.doctor import achieved, agreement, gpus, graphs, kv_pulls, parity
from bench.doctor.check import Finding
from bench.kernels.families import FAMILIES

GpuCheck = Callable[[torch.device], Iterator[Finding]]

TIME_LIMIT_S = 900.0  # of one check; each runs in a process of its own (child.py)

GPU_CHECKS: Mapping[str, GpuCheck] = {
    "GPUs": gpus.check,
    **{f"kernel {family}": partial(agreement.check, family=family) for family in FAMILIES},
    "KV by CUDA IPC": kv_pulls.check,
    "KV by NCCL": partial(kv_pulls.check, network="nccl"),
    "decode graphs": graphs.check,
    "greedy parity, float32": partial(parity.check, dtype=torch.float32),
    "greedy parity, bfloat16": partial(parity.check, dtype=torch.bfloat16),
    "roofline": achieved.check,
}
