"""Cases of kernels/gpu/split_k.py: the partial sums of a decode batch."""

import torch
from torch import Tensor

from bench.kernels.case import Expected, KernelCase
from kernels.gpu import split_k


def cases() -> list[KernelCase]:
    """A batch of Llama 3 8B's qkv."""
    return [_of(4, 16, 6144)]


def small_cases() -> list[KernelCase]:
    """For the interpreter."""
    return [_of(2, 3, 600)]


def _of(splits: int, tokens: int, outputs: int) -> KernelCase:
    dtype = torch.bfloat16
    return KernelCase(
        family="split_k",
        name=f"{splits} splits of {tokens}x{outputs}, bf16",
        make=lambda inputs: (
            inputs.randn(splits, tokens, outputs, dtype=torch.float32),
            inputs.randn(outputs, dtype=dtype),
            dtype,
        ),
        launch=split_k.sum_splits,
        twin=_summed,
        tolerance=2e-2,
        traffic_bytes=tokens * outputs * (4 * splits + dtype.itemsize),
        flops=splits * tokens * outputs,
        expected=Expected(max_registers=64, opcodes_everywhere=("LDG.E.128", "STG.E"), forbidden=("STG.E.U16",)),
    )


def _summed(partial: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    return (partial.sum(dim=0) + bias.float()).to(dtype)
