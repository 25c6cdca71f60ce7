"""Linears with float8 (e4m3) weights on a GPU, scaled by blocks of 128 x 128, by output or by tensor.

Where tensor cores multiply float8 (from sm_89) the activations are quantized first, each token in groups of 128 inputs,
whatever the checkpoint says of activations: no scheme on disk is finer. A product takes 128 inputs, and its scales
multiply the sum in float32, so that the tensor cores' short accumulators hold 128 terms at most (DeepSeek-V3, 2024,
section 3.3.2). Elsewhere weights are widened in registers. Twins: `scaled_linear` and `weight_only_linear` of
`quantized_linear`.

The outputs are the rows of the product and the tokens its columns, so that few tokens waste little. Few tokens are
bound by memory (a byte per weight), many by arithmetic.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.split_k import choose_num_splits, sum_splits
from kernels.gpu.target import capability, num_multiprocessors
from kernels.quantized_linear import FLOAT8, FLOAT8_GROUP, Fp8Weight

_LARGEST = torch.finfo(FLOAT8).max
_GROUPS_PER_PROGRAM = 8


@triton.jit(do_not_specialize=["num_tokens"])
def _quantize_kernel(
    x_ptr,
    values_ptr,
    scales_ptr,
    num_tokens,
    num_inputs,
    x_stride,
    LARGEST: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    GROUPS: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    groups = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    inputs = groups[:, None] * GROUP_SIZE + tl.arange(0, GROUP_SIZE)[None, :]
    inside = inputs < num_inputs
    x = tl.load(x_ptr + token * x_stride + inputs, mask=inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(x), axis=1) / LARGEST, 1e-30)
    tl.store(values_ptr + token * num_inputs + inputs, (x / scale[:, None]).to(tl.float8e4nv), mask=inside)
    tl.store(scales_ptr + groups.to(tl.int64) * num_tokens + token, scale, mask=groups * GROUP_SIZE < num_inputs)


def quantize_activations(x: Tensor) -> tuple[Tensor, Tensor]:
    """`quantized_linear.quantize_activations`"""
    num_tokens, num_inputs = x.shape
    assert x.stride(1) == 1, "a token is contiguous"
    num_groups = triton.cdiv(num_inputs, FLOAT8_GROUP)
    values = torch.empty((num_tokens, num_inputs), dtype=FLOAT8, device=x.device)
    scales = torch.empty((num_groups, num_tokens), dtype=torch.float32, device=x.device)
    if num_tokens:
        _quantize_kernel[(num_tokens, triton.cdiv(num_groups, _GROUPS_PER_PROGRAM))](
            x,
            values,
            scales,
            num_tokens,
            num_inputs,
            x.stride(0),
            LARGEST=_LARGEST,
            GROUP_SIZE=FLOAT8_GROUP,
            GROUPS=_GROUPS_PER_PROGRAM,
            num_warps=4,
        )
    return values, scales


@triton.jit(do_not_specialize=["num_tokens"])
def _fp8_linear_kernel(
    x_ptr,
    x_scales_ptr,
    values_ptr,
    scales_ptr,
    bias_ptr,
    out_ptr,
    num_tokens,
    num_outputs,
    num_inputs,
    x_stride,
    groups_per_split,
    IS_X_FLOAT8: tl.constexpr,
    HAS_GROUPS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    STAGES: tl.constexpr,
):
    tokens = tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    outputs = tl.program_id(1) * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    split = tl.program_id(2)
    is_token = tokens < num_tokens
    is_output = outputs < num_outputs
    begin = split * groups_per_split
    end = tl.minimum(begin + groups_per_split, tl.cdiv(num_inputs, GROUP_SIZE))

    places = tl.arange(0, GROUP_SIZE)
    x_rows = x_ptr + tokens.to(tl.int64)[:, None] * x_stride
    value_rows = values_ptr + outputs.to(tl.int64)[:, None] * num_inputs
    total = tl.zeros([BLOCK_OUTPUTS, BLOCK_TOKENS], tl.float32)
    for group in tl.range(begin, end, num_stages=STAGES):
        inputs = group * GROUP_SIZE + places
        is_input = (inputs < num_inputs)[None, :]
        weight = tl.load(value_rows + inputs[None, :], mask=is_output[:, None] & is_input, other=0.0)
        x = tl.load(x_rows + inputs[None, :], mask=is_token[:, None] & is_input, other=0.0)
        if not IS_X_FLOAT8:
            # Sign, exponent and mantissa as a float16 has them: 1/256 of the number, subnormals too.
            bits = ((weight.to(tl.int16) << 8) >> 1) & -16385
            weight = bits.to(tl.float16, bitcast=True).to(x.dtype)
        summed = tl.dot(weight, tl.trans(x), input_precision="ieee")
        if IS_X_FLOAT8:
            x_scale = tl.load(x_scales_ptr + group * num_tokens + tokens, mask=is_token, other=0.0)
            summed *= x_scale[None, :]
        if HAS_GROUPS:
            scale = tl.load(scales_ptr + group * num_outputs + outputs, mask=is_output, other=0.0)
            summed *= scale[:, None]
        total += summed
    if not HAS_GROUPS:
        total *= tl.load(scales_ptr + outputs, mask=is_output, other=0.0)[:, None]
    if not IS_X_FLOAT8:
        total *= 256.0

    if IS_SPLIT:
        out_rows = out_ptr + (split.to(tl.int64) * num_tokens + tokens)[:, None] * num_outputs
    else:
        out_rows = out_ptr + tokens.to(tl.int64)[:, None] * num_outputs
        if HAS_BIAS:
            total += tl.load(bias_ptr + outputs, mask=is_output, other=0.0).to(tl.float32)[:, None]
    out = tl.trans(total).to(out_ptr.dtype.element_ty)
    tl.store(out_rows + outputs[None, :], out, mask=is_token[:, None] & is_output[None, :])


@dataclass(frozen=True, slots=True)
class TileShape:
    """How much one program takes at once, of 128 inputs per turn."""

    tokens: int
    outputs: int
    stages: int
    num_warps: int


def tile_shape(num_tokens: int, element_bytes: int, capability: int) -> TileShape:
    """Tiles of few tokens: stages enough to keep memory busy. Of many: what registers and shared memory hold.

    A stage takes 128 bytes per output and 128 elements per token, of the 99 KiB that every target has.
    """
    if element_bytes == 4:
        # Float32 has no tensor cores here and is for comparisons.
        return TileShape(16, 32, 1, 4)
    tokens = min(128 if element_bytes == 1 else 64, max(16, triton.next_power_of_2(num_tokens)))
    if tokens <= 32:
        return TileShape(tokens, 128, 4, 4)
    return TileShape(tokens, 128, 4 if capability // 10 in (9, 10) else 2, 8)


def fp8_linear(
    x: Tensor,
    weight: Fp8Weight,
    bias: Tensor | None,
    quantizes_x: bool | None = None,
    num_splits: int | None = None,
) -> Tensor:
    """x: [tokens, in], bias: [out] -> [tokens, out]. `quantizes_x` and `num_splits` are for tests."""
    num_tokens, num_inputs = x.shape
    num_outputs = weight.values.shape[0]
    assert weight.values.shape[1] == num_inputs and weight.values.is_contiguous() and weight.scales.is_contiguous()
    assert weight.group_size in (FLOAT8_GROUP, num_inputs) and (bias is None or bias.is_contiguous())
    assert x.stride(1) == 1, "a token is contiguous"
    dtype = x.dtype
    if not num_tokens:
        return torch.empty((0, num_outputs), dtype=dtype, device=x.device)
    if quantizes_x is None:
        quantizes_x = capability(x.device) >= 89
    x, x_scales = quantize_activations(x) if quantizes_x else (x, x)
    shape = tile_shape(num_tokens, x.element_size(), capability(x.device))
    grid = (triton.cdiv(num_tokens, shape.tokens), triton.cdiv(num_outputs, shape.outputs))
    num_turns = triton.cdiv(num_inputs, FLOAT8_GROUP)
    if num_splits is None:
        # The partial sums of many tokens would be more than the weight.
        programs = grid[0] * grid[1]
        num_splits = 1 if shape.tokens > 64 else choose_num_splits(programs, num_turns, num_multiprocessors(x.device))
    out_shape = (num_tokens, num_outputs) if num_splits == 1 else (num_splits, num_tokens, num_outputs)
    out = torch.empty(out_shape, dtype=dtype if num_splits == 1 else torch.float32, device=x.device)
    _fp8_linear_kernel[(*grid, num_splits)](
        x,
        x_scales,
        weight.values if quantizes_x else weight.values.view(torch.uint8),
        weight.scales,
        out if bias is None else bias,
        out,
        num_tokens,
        num_outputs,
        num_inputs,
        x.stride(0),
        triton.cdiv(num_turns, num_splits),
        IS_X_FLOAT8=quantizes_x,
        HAS_GROUPS=weight.group_size < num_inputs,
        GROUP_SIZE=FLOAT8_GROUP,
        BLOCK_TOKENS=shape.tokens,
        BLOCK_OUTPUTS=shape.outputs,
        HAS_BIAS=bias is not None,
        IS_SPLIT=num_splits > 1,
        STAGES=shape.stages,
        num_warps=shape.num_warps,
    )
    return out if num_splits == 1 else sum_splits(out, bias, dtype)
