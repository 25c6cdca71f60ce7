"""Cases of kernels/gpu/silu_mul.py: intermediate sizes of SmolLM2 and of Llama 3 8B."""

import torch

from bench.kernels.case import Expected, KernelCase
from kernels import reference
from kernels.gpu import silu_mul

_EXPECTED = Expected(
    max_registers=64, opcodes_everywhere=("LDG.E.128", "STG.E.128"), forbidden=("LDG.E.U16", "STG.E.U16")
)


def cases() -> list[KernelCase]:
    """A decode batch and a prefill chunk."""
    return [_of(rows, size) for rows in (64, 2048) for size in (1536, 14336)]


def small_cases() -> list[KernelCase]:
    """For the interpreter."""
    return [_of(2, 1040)]


def _of(rows: int, size: int) -> KernelCase:
    dtype = torch.bfloat16
    return KernelCase(
        family="silu_mul",
        name=f"{rows}x{size} bf16",
        make=lambda inputs: (inputs.randn(rows, 2 * size, dtype=dtype),),
        launch=silu_mul.silu_mul,
        twin=reference.silu_mul,
        tolerance=3e-2,
        traffic_bytes=3 * rows * size * dtype.itemsize,
        flops=5 * rows * size,
        expected=_EXPECTED,
    )
