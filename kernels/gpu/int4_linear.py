"""Linears with 4-bit weights on a GPU, for every format that `quantized_linear.Int4Weight` holds.

Twin: `quantized_linear.weight_only_linear`. The outputs are the rows of the tensor-core product and the tokens its
columns, so that the weight, taken apart in registers, is the operand that may come from there, and few tokens waste
little. A mask gives two codes as the low bits of two 16-bit floats of a known exponent; less the zero point, which is
stored in the same way, they are exact. For few tokens the scales multiply the sums of a group, in float32, which is
cheaper and rounds nothing but the result; for many they multiply the weights.

Few tokens are bound by memory (half a byte per weight), many by arithmetic. Weights are read once per tile of tokens,
16 bytes at a time and some tiles ahead; the programs that share a tile of weights are neighbours in the grid.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.split_k import choose_num_splits, sum_splits
from kernels.gpu.target import capability, num_multiprocessors
from kernels.quantized_linear import TILE_INPUTS, TILE_WORDS, Int4Weight

# 16-bit floats whose lowest mantissa bit counts 1: 1024 and 128. A code in the low bits is added to them.
_EXPONENT = {torch.float16: 0x6400, torch.bfloat16: 0x4300, torch.float32: 0}


@triton.jit
def _as_number(code, dtype: tl.constexpr):
    """int16, exponent and code -> a float; float32 has codes without exponent."""
    return code.to(tl.float32) if dtype == tl.float32 else code.to(dtype, bitcast=True)


@triton.jit(do_not_specialize=["num_tokens"])
def _int4_linear_kernel(
    x_ptr,
    words_ptr,
    scales_zeros_ptr,
    bias_ptr,
    out_ptr,
    num_tokens,
    num_outputs,
    num_inputs,
    x_stride,
    tiles_per_split,
    GROUP_SIZE: tl.constexpr,
    EXPONENT: tl.constexpr,
    TILE_WORDS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr,
    SCALES_SUMS: tl.constexpr,
    JOINED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    STAGES: tl.constexpr,
):
    tokens = tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    outputs = tl.program_id(1) * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    split = tl.program_id(2)
    is_token = tokens < num_tokens
    is_output = outputs < num_outputs
    TILE_INPUTS: tl.constexpr = 8 * TILE_WORDS
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    begin = split * tiles_per_split
    end = tl.minimum(begin + tiles_per_split, tl.cdiv(num_inputs, TILE_INPUTS))

    places = tl.arange(0, TILE_WORDS)
    x_rows = x_ptr + tokens.to(tl.int64)[:, None] * x_stride
    total = tl.zeros([BLOCK_OUTPUTS, BLOCK_TOKENS], tl.float32)
    for tile in tl.range(begin, end, num_stages=STAGES):
        word_rows = words_ptr + (tile * num_outputs + outputs).to(tl.int64)[:, None] * TILE_WORDS
        words = tl.load(word_rows + places[None, :], mask=is_output[:, None], other=0)
        if JOINED:
            parts = tl.arange(0, 8)
            first = tile * TILE_INPUTS + parts * TILE_WORDS
            # The last tile may go beyond the last group.
            is_scale = is_output[:, None] & (first < num_inputs)[None, :]
            groups = (first // GROUP_SIZE)[None, :] * num_outputs
            scale_zero = tl.load(scales_zeros_ptr + groups + outputs[:, None], mask=is_scale, other=0)
            zero = (scale_zero >> 16).to(tl.float32)
            scale = scale_zero.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
            shifts = parts // 2 * 4 + parts % 2 * 16
            codes = (words[:, None, :] >> shifts[None, :, None]) & 0xF
            scaled = ((codes.to(tl.float32) - zero[:, :, None]) * scale[:, :, None]).to(dtype)
            weight = tl.reshape(scaled, [BLOCK_OUTPUTS, TILE_INPUTS])
            inputs = tile * TILE_INPUTS + tl.arange(0, TILE_INPUTS)
            is_x = is_token[:, None] & (inputs < num_inputs)[None, :]
            x = tl.load(x_rows + inputs[None, :], mask=is_x, other=0.0)
            total = tl.dot(weight, tl.trans(x), total, input_precision="ieee")
        else:
            for part in tl.static_range(8):
                first = tile * TILE_INPUTS + part * TILE_WORDS
                if part == 0 or part * TILE_WORDS % GROUP_SIZE == 0:
                    is_scale = is_output & (first < num_inputs)
                    places_of_group = first // GROUP_SIZE * num_outputs + outputs
                    scale_zero = tl.load(scales_zeros_ptr + places_of_group, mask=is_scale, other=0)
                    zero = _as_number(((scale_zero >> 16) | EXPONENT).to(tl.int16), dtype)
                    scale = scale_zero.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
                    if SCALES_SUMS:
                        summed = tl.zeros([BLOCK_OUTPUTS, BLOCK_TOKENS], tl.float32)
                pair = ((words >> (part // 2 * 4)) & 0x000F000F) | (EXPONENT * 0x00010001)
                weight = _as_number((pair >> (part % 2 * 16)).to(tl.int16), dtype) - zero[:, None]
                inputs = first + places
                is_x = is_token[:, None] & (inputs < num_inputs)[None, :]
                x = tl.load(x_rows + inputs[None, :], mask=is_x, other=0.0)
                if SCALES_SUMS:
                    summed = tl.dot(weight, tl.trans(x), summed, input_precision="ieee")
                    if part == 7 or (part + 1) * TILE_WORDS % GROUP_SIZE == 0:
                        total += summed * scale[:, None]
                else:
                    weight = (weight.to(tl.float32) * scale[:, None]).to(dtype)
                    total = tl.dot(weight, tl.trans(x), total, input_precision="ieee")

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
    """How much one program takes at once."""

    tokens: int
    outputs: int
    stages: int
    num_warps: int
    joined: bool = False  # one product per tile of weights; else eight


def tile_shape(num_tokens: int, element_bytes: int, capability: int) -> TileShape:
    """Tiles of few tokens: stages enough to keep memory busy. Of many: what registers and shared memory hold.

    A stage takes 128 bytes per output and 256 elements per token, of the 99 KiB that every target has.
    """
    if element_bytes == 4:
        # Float32 has no tensor cores here and is for comparisons.
        return TileShape(16, 32, 1, 4)
    generation = capability // 10
    if num_tokens <= 16:
        few = {8: TileShape(16, 64, 3, 4), 10: TileShape(16, 128, 4, 4)}
        return few.get(generation, TileShape(16, 128, 3, 8))
    tokens = 64 if num_tokens <= 64 else 128
    if generation == 10:
        # Triton gives every product of the loop's body tensor memory of its own: eight of 64 tokens do not fit.
        return TileShape(tokens, 128, 2, 8, joined=True)
    return TileShape(tokens if generation == 9 else 64, 128, 2, 8)


def int4_linear(
    x: Tensor,
    weight: Int4Weight,
    bias: Tensor | None,
    num_splits: int | None = None,
    shape: TileShape | None = None,
) -> Tensor:
    """x: [tokens, in], bias: [out] -> [tokens, out]. `num_splits` and `shape` are for tests."""
    num_tokens, num_inputs = x.shape
    num_tiles, num_outputs, _ = weight.words.shape
    assert num_inputs == weight.num_inputs and weight.words.is_contiguous() and weight.scales_zeros.is_contiguous()
    assert weight.group_size % TILE_WORDS == 0 or weight.group_size == num_inputs
    assert bias is None or bias.is_contiguous()
    if weight.inputs is not None:
        x = torch.index_select(x, 1, weight.inputs)
    assert x.stride(1) == 1, "a token is contiguous"
    if not num_tokens:
        return torch.empty((0, num_outputs), dtype=x.dtype, device=x.device)
    shape = shape or tile_shape(num_tokens, x.element_size(), capability(x.device))
    grid = (triton.cdiv(num_tokens, shape.tokens), triton.cdiv(num_outputs, shape.outputs))
    if num_splits is None:
        # The partial sums of many tokens would be more than the weight.
        num_splits = (
            1 if shape.tokens > 64 else choose_num_splits(grid[0] * grid[1], num_tiles, num_multiprocessors(x.device))
        )
    out_shape = (num_tokens, num_outputs) if num_splits == 1 else (num_splits, num_tokens, num_outputs)
    out = torch.empty(out_shape, dtype=x.dtype if num_splits == 1 else torch.float32, device=x.device)
    _int4_linear_kernel[(*grid, num_splits)](
        x,
        weight.words,
        weight.scales_zeros,
        out if bias is None else bias,
        out,
        num_tokens,
        num_outputs,
        num_inputs,
        x.stride(0),
        triton.cdiv(num_tiles, num_splits),
        # One group: as large as all tiles.
        GROUP_SIZE=weight.group_size if weight.group_size < num_inputs else num_tiles * TILE_INPUTS,
        EXPONENT=_EXPONENT[x.dtype],
        TILE_WORDS=TILE_WORDS,
        BLOCK_TOKENS=shape.tokens,
        BLOCK_OUTPUTS=shape.outputs,
        SCALES_SUMS=shape.tokens == 16,
        JOINED=shape.joined,
        HAS_BIAS=bias is not None,
        IS_SPLIT=num_splits > 1,
        STAGES=shape.stages,
        num_warps=shape.num_warps,
    )
    return out if num_splits == 1 else sum_splits(out, bias, x.dtype)
