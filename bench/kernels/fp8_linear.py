"""Cases of kernels/gpu/fp8_linear.py: linears of Llama 3 8B for one token, a decode batch and a prefill chunk."""

from typing import Any

import torch

from bench.kernels.case import FLOAT8_CAPABILITIES, Expected, Inputs, KernelCase
from kernels.gpu import fp8_linear
from kernels.quantized_linear import FLOAT8, FLOAT8_GROUP, Fp8Weight, scaled_linear, weight_only_linear

_LOADS = ("LDGSTS.E.BYPASS.128",)
# Hopper multiplies by warp groups; Triton gives Blackwell's data-center parts tcgen05, others QMMA.
_OPCODES = {80: ("HMMA",), 90: ("QGMMA",), 100: ("UTCQMMA",), 120: ("QMMA",)}


def cases() -> list[KernelCase]:
    """gate_up, qkv, and down with a scale per output; weights are widened where float8 is not multiplied."""
    return [
        case
        for is_native in (True, False)
        for case in (
            _of(1, 4096, 28672, FLOAT8_GROUP, is_native),
            _of(16, 4096, 6144, FLOAT8_GROUP, is_native),
            _of(64, 14336, 4096, 14336, is_native),
            _of(512, 4096, 6144, FLOAT8_GROUP, is_native),
            _of(512, 14336, 4096, 14336, is_native),
        )
    ]


def small_cases() -> list[KernelCase]:
    """For the interpreter."""
    return [_of(3, 320, 72, FLOAT8_GROUP), _of(3, 320, 72, 320), _of(3, 320, 72, FLOAT8_GROUP, is_native=False)]


def _of(tokens: int, num_inputs: int, num_outputs: int, group_size: int, is_native: bool = True) -> KernelCase:
    dtype = torch.bfloat16
    num_groups = -(-num_inputs // group_size)

    def make(inputs: Inputs) -> tuple[Any, ...]:
        values = inputs.randn(num_outputs, num_inputs, dtype=FLOAT8, scale=100.0)
        scales = inputs.randn(num_groups, num_outputs, dtype=torch.float32, scale=0.01).abs()
        x = inputs.randn(tokens, num_inputs, dtype=dtype, scale=num_inputs**-0.5)
        return x, Fp8Weight(values, scales, group_size), None, is_native

    how = "multiplied as float8" if is_native else "widened"
    return KernelCase(
        family="fp8_linear",
        name=f"{tokens} tokens, {num_inputs} to {num_outputs}, groups of {group_size}, {how}",
        make=make,
        launch=fp8_linear.fp8_linear,
        twin=lambda x, weight, bias, _: (scaled_linear if is_native else weight_only_linear)(x, weight, bias),
        tolerance=2e-2,
        traffic_bytes=num_inputs * num_outputs + 4 * num_groups * num_outputs + 2 * tokens * (num_inputs + num_outputs),
        flops=2 * tokens * num_inputs * num_outputs,
        expected=Expected(opcodes=_OPCODES, opcodes_everywhere=_LOADS, forbidden=("LDG.E.U16", "STG.E.U16")),
        capabilities=FLOAT8_CAPABILITIES if is_native else (80,),
    )
