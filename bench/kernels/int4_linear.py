"""Cases of kernels/gpu/int4_linear.py: linears of Llama 3 8B for one token, a decode batch and a prefill chunk."""

from typing import Any

import torch

from bench.kernels.case import Expected, Inputs, KernelCase
from kernels.gpu import int4_linear
from kernels.quantized_linear import TILE_INPUTS, TILE_WORDS, Int4Weight, weight_only_linear

_LOADS = ("LDGSTS.E.BYPASS.128",)
# Many tokens: by warp groups on Hopper, by tcgen05 on Blackwell's data-center parts.
_OPCODES = {80: ("HMMA",), 90: ("HGMMA",), 100: ("UTCHMMA",), 120: ("HMMA",)}


def cases() -> list[KernelCase]:
    """gate_up, qkv and down in groups of 128; qkv in other groups, and for tiles of every size."""
    return [
        _of(1, 4096, 28672, 128),
        _of(16, 4096, 6144, 128),
        _of(16, 14336, 4096, 128),
        _of(512, 4096, 28672, 128),
        _of(512, 14336, 4096, 128),
        _of(16, 4096, 6144, 32),
        _of(512, 4096, 6144, 32),
        _of(16, 4096, 6144, 4096),
        *(_of(tokens, 4096, 6144, 64, torch.float16) for tokens in (16, 64)),
    ]


def small_cases() -> list[KernelCase]:
    """For the interpreter."""
    return [_of(3, 512, 72, 128), _of(20, 320, 40, 64, torch.float16)]


def _of(
    tokens: int, num_inputs: int, num_outputs: int, group_size: int, dtype: torch.dtype = torch.bfloat16
) -> KernelCase:
    num_tiles, num_groups = -(-num_inputs // TILE_INPUTS), -(-num_inputs // group_size)

    def make(inputs: Inputs) -> tuple[Any, ...]:
        words = inputs.integers(-(1 << 31), 1 << 31, num_tiles, num_outputs, TILE_WORDS)
        zeros = inputs.integers(0, 17, num_groups, num_outputs)
        scales = inputs.randn(num_groups, num_outputs, dtype=torch.float16, scale=0.01)
        scales_zeros = zeros << 16 | scales.view(torch.int16).int() & 0xFFFF
        x = inputs.randn(tokens, num_inputs, dtype=dtype, scale=num_inputs**-0.5)
        return x, Int4Weight(words, scales_zeros, num_inputs, group_size), None

    bits = num_inputs * num_outputs * 4 + num_groups * num_outputs * 32
    return KernelCase(
        family="int4_linear",
        name=f"{tokens} tokens, {num_inputs} to {num_outputs}, groups of {group_size}, {str(dtype)[6:]}",
        make=make,
        launch=int4_linear.int4_linear,
        twin=weight_only_linear,
        tolerance=2e-2,
        traffic_bytes=bits // 8 + tokens * (num_inputs + num_outputs) * dtype.itemsize,
        flops=2 * tokens * num_inputs * num_outputs,
        expected=Expected(opcodes=_OPCODES, opcodes_everywhere=_LOADS, forbidden=("LDG.E.U16", "STG.E.U16")),
    )
