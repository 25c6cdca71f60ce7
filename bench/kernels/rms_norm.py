"""Cases of kernels/gpu/rms_norm.py: hidden sizes of SmolLM2 to Llama 70B, one decode batch and one prefill chunk."""

import torch

from bench.kernels.case import Expected, KernelCase
from kernels import reference
from kernels.gpu import rms_norm

_EPS = 1e-5
_EXPECTED = Expected(
    max_registers=64, opcodes_everywhere=("LDG.E.128", "STG.E.128"), forbidden=("LDG.E.U16", "STG.E.U16")
)


def cases() -> list[KernelCase]:
    """Alone and with the addition."""
    return [case for rows in (64, 8192) for size in (576, 4096, 8192) for case in _of(rows, size)]


def small_cases() -> list[KernelCase]:
    """For the interpreter."""
    return _of(2, 576)


def _of(rows: int, size: int) -> list[KernelCase]:
    dtype = torch.bfloat16
    return [
        KernelCase(
            family="rms_norm",
            name=f"{rows}x{size} bf16",
            make=lambda inputs: (inputs.randn(rows, size, dtype=dtype), inputs.randn(size, dtype=dtype), _EPS),
            launch=rms_norm.rms_norm,
            twin=reference.rms_norm,
            tolerance=2e-2,
            traffic_bytes=2 * rows * size * dtype.itemsize,
            flops=4 * rows * size,
            expected=_EXPECTED,
        ),
        KernelCase(
            family="rms_norm",
            name=f"add {rows}x{size} bf16",
            make=lambda inputs: (
                inputs.randn(rows, size, dtype=dtype),
                inputs.randn(rows, size, dtype=dtype),
                inputs.randn(size, dtype=dtype),
                _EPS,
            ),
            launch=rms_norm.add_rms_norm,
            twin=reference.add_rms_norm,
            tolerance=2e-2,
            traffic_bytes=4 * rows * size * dtype.itemsize,
            flops=5 * rows * size,
            expected=_EXPECTED,
        ),
    ]
