"""How long every kernel case takes on the device, beside the least time that its data sheet allows (roofline.py)."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import triton

from bench.doctor.check import Finding, Verdict, attempt
from bench.kernels.case import Inputs, KernelCase
from bench.kernels.families import FAMILIES, cases_of
from bench.kernels.gpu_types import GpuType, type_of
from bench.kernels.roofline import bound
from kernels.gpu.target import capability

Timer = Callable[[Callable[[], object]], float]  # a launch -> microseconds


def check(
    device: torch.device, timer: Timer | None = None, cases: Sequence[KernelCase] | None = None
) -> Iterator[Finding]:
    """A line per case that runs on the device: median time, rate, and share of the bound where that is known."""
    gpu = type_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    every = [case for family in FAMILIES for case in cases_of(family)] if cases is None else cases
    for case in every:
        if case.runs_on(capability(device)):
            subject = f"{case.family} {case.name}"
            yield from attempt(subject, partial(_time, subject, case, device, gpu, timer or cuda_events))


def cuda_events(launch: Callable[[], object]) -> float:
    """Median by CUDA events, the L2 cache cleared before every launch. -> us"""
    median_ms: float = triton.testing.do_bench(launch, return_mode="median")
    return median_ms * 1e3


def _time(subject: str, case: KernelCase, device: torch.device, gpu: GpuType | None, timer: Timer) -> Iterator[Finding]:
    arguments = case.make(Inputs(device))
    yield rate(subject, case, gpu, timer(lambda: case.launch(*arguments)))


def rate(subject: str, case: KernelCase, gpu: GpuType | None, us: float) -> Finding:
    """What a time means. No time is a failure: a slow GPU is slow, not broken."""
    figures = {"us": us, "gb_s": case.traffic_bytes / us / 1e3, "tflops": case.flops / us / 1e6}
    said = f"{us:.1f} us: {figures['gb_s']:,.0f} GB/s, {figures['tflops']:.2f} TFLOP/s"
    if gpu is not None:
        least = bound(case, gpu)
        figures |= {"bound_us": least.us, "share_of_bound": least.us / us}
        said += f"; {least.us / us:.0%} of the bound, {least.us:.1f} us by {least.by}"
    return Finding(subject, Verdict.OK, said, figures=figures)
