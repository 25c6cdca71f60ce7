"""The least time a launch can take on a GPU, from what it must move and compute (Williams et al. 2009). Pure.

A bound, not a forecast: launch overhead, caches and clocks that are below the data sheet's are not in it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from bench.kernels.case import KernelCase
from bench.kernels.gpu_types import GpuType
from bench.markdown import markdown_table


@dataclass(frozen=True, slots=True)
class Bound:
    """No launch of the case is faster than `us`, because of `by`."""

    us: float
    by: Literal["memory", "tensor cores", "float32 units"]


def intensity(case: KernelCase) -> float:
    """FLOPs per byte that must be moved."""
    return case.flops / case.traffic_bytes


def bound(case: KernelCase, gpu: GpuType) -> Bound:
    """The larger of bytes / bandwidth and FLOPs / peak of the units that compute them."""
    memory_us = case.traffic_bytes / gpu.memory_gb_s / 1e3
    tflops = gpu.tensor_tflops if case.on_tensor_cores else gpu.vector_tflops
    compute_us = case.flops / tflops / 1e6
    if memory_us >= compute_us:
        return Bound(memory_us, "memory")
    return Bound(compute_us, "tensor cores" if case.on_tensor_cores else "float32 units")


def roofline_table(cases: Sequence[KernelCase], gpus: Mapping[str, GpuType]) -> str:
    """Markdown: a row per case, a column per GPU; `-` where the case cannot run."""
    header = ["family", "case", "MB", "MFLOP", "FLOP/B", *gpus]
    rows = [
        [
            case.family,
            case.name,
            f"{case.traffic_bytes / 1e6:,.2f}",
            f"{case.flops / 1e6:,.1f}",
            f"{intensity(case):,.1f}",
            *(_cell(case, gpu) for gpu in gpus.values()),
        ]
        for case in cases
    ]
    return markdown_table(header, rows)


def _cell(case: KernelCase, gpu: GpuType) -> str:
    if not case.runs_on(gpu.capability):
        return "-"
    least = bound(case, gpu)
    return f"{least.us:,.2f} us, {least.by}"
