"""Weights of 8-bit floats (e4m3) and of 4-bit codes: how they lie in memory, and what they mean. Plain torch.

One layout serves every 4-bit format. A word holds 8 codes of one output; the words of a tile of 256 inputs lie
together, output by output. What lies at one place of the words of a tile are 32 neighbouring inputs, so that a kernel
takes a tile apart with shifts and masks alone; even and odd groups of 32 lie in the low and the high half of a word, so
that one mask gives two 16-bit codes:

    input 256 * tile + 32 * j + w  is  bits SHIFTS[j] .. SHIFTS[j] + 3  of  words[tile, output, w]

Inputs that the quantizer took in an order of its own (act-order) are stored in that order; whoever multiplies brings
the activations into it first. The twins dequantize and call `reference.linear`. Knows no file and no model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import reference

TILE_WORDS = 32
TILE_INPUTS = 8 * TILE_WORDS
SHIFTS = (0, 16, 4, 20, 8, 24, 12, 28)
FLOAT8 = torch.float8_e4m3fn
FLOAT8_GROUP = 128  # inputs of one token that are quantized with one scale


@dataclass(frozen=True, slots=True)
class Int4Weight:
    """weight[n, inputs[k]] = scale[k // group_size, n] * (code[n, k] - zero[k // group_size, n])"""

    words: Tensor  # int32 [ceil(in / 256), out, 32]
    scales_zeros: Tensor  # int32 [ceil(in / group_size), out]: low half the float16 scale, high half the zero point
    num_inputs: int
    group_size: int  # inputs that share a scale: 32, 64, 128, or all
    inputs: Tensor | None = None  # int32 [in], which input the k-th code of an output belongs to; None: the k-th


@dataclass(frozen=True, slots=True)
class Fp8Weight:
    """weight[n, k] = scales[k // group_size, n] * values[n, k]"""

    values: Tensor  # float8_e4m3fn [out, in]
    scales: Tensor  # float32 [ceil(in / group_size), out]
    group_size: int  # inputs that share a scale: 128, or all


QuantizedWeight = Int4Weight | Fp8Weight


def pack_int4(codes: Tensor, scales: Tensor, zeros: Tensor, group_size: int, inputs: Tensor | None) -> Int4Weight:
    """codes: uint8 [in, out], 0..15; scales: float16 and zeros: uint8 [ceil(in / group_size), out]"""
    num_inputs, num_outputs = codes.shape
    num_tiles = -(-num_inputs // TILE_INPUTS)
    padded = torch.nn.functional.pad(codes, (0, 0, 0, num_tiles * TILE_INPUTS - num_inputs))
    tiles = padded.view(num_tiles, 8, TILE_WORDS, num_outputs)
    words = torch.zeros(num_tiles, TILE_WORDS, num_outputs, dtype=torch.int32, device=codes.device)
    for place, shift in enumerate(SHIFTS):
        words |= tiles[:, place].int() << shift
    halves = torch.stack((scales.half().view(torch.int16), zeros.short()), dim=-1)
    packed = halves.contiguous().view(torch.int32).squeeze(-1)
    return Int4Weight(words.transpose(1, 2).contiguous(), packed, num_inputs, group_size, inputs)


def unpack_int4(weight: Int4Weight) -> tuple[Tensor, Tensor, Tensor]:
    """-> codes, scales, zeros as `pack_int4` takes them"""
    nibbles = [(weight.words >> shift).bitwise_and(15).to(torch.uint8) for shift in SHIFTS]
    num_tiles, num_outputs, _ = weight.words.shape
    codes = torch.stack(nibbles, dim=1).transpose(2, 3).reshape(num_tiles * TILE_INPUTS, num_outputs)
    halves = weight.scales_zeros.unsqueeze(-1).view(torch.int16)
    return codes[: weight.num_inputs], halves[..., 0].view(torch.float16), halves[..., 1].to(torch.uint8)


def awq_codes(words: Tensor) -> Tensor:
    """AWQ's words, int32 [rows, out / 8], interleaved within a word. -> uint8 [rows, out], 0..15"""
    return _codes_of_words(words, (0, 16, 4, 20, 8, 24, 12, 28))


def gptq_codes(words: Tensor) -> Tensor:
    """GPTQ's words, int32 [rows, columns / 8], columns from the lowest bits up. -> uint8 [rows, columns], 0..15"""
    return _codes_of_words(words, range(0, 32, 4))


def _codes_of_words(words: Tensor, shifts: Sequence[int]) -> Tensor:
    codes = [(words >> shift).bitwise_and(15).to(torch.uint8) for shift in shifts]
    return torch.stack(codes, dim=-1).flatten(-2)


def concatenated(parts: Sequence[QuantizedWeight]) -> QuantizedWeight | None:
    """One weight with the outputs of all parts, in that order; None where their inputs are not quantized alike."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, Fp8Weight):
        floats = [part for part in parts if isinstance(part, Fp8Weight) and part.group_size == first.group_size]
        if len(floats) < len(parts):
            return None
        values = torch.cat([part.values.view(torch.uint8) for part in floats]).view(FLOAT8)
        return Fp8Weight(values, torch.cat([part.scales for part in floats], dim=1), first.group_size)
    integers = [part for part in parts if isinstance(part, Int4Weight) and part.group_size == first.group_size]
    if len(integers) < len(parts) or not all(_same_order(first.inputs, part.inputs) for part in integers):
        return None
    words = torch.cat([part.words for part in integers], dim=1)
    scales_zeros = torch.cat([part.scales_zeros for part in integers], dim=1)
    return Int4Weight(words, scales_zeros, first.num_inputs, first.group_size, first.inputs)


def _same_order(left: Tensor | None, right: Tensor | None) -> bool:
    if left is None or right is None:
        return left is right
    return torch.equal(left, right)


def dequantize(weight: QuantizedWeight, dtype: torch.dtype) -> Tensor:
    """-> [out, in]; computed in float32, rounded once."""
    if isinstance(weight, Fp8Weight):
        scales = weight.scales.T.repeat_interleave(weight.group_size, dim=1)[:, : weight.values.shape[1]]
        return (weight.values.float() * scales).to(dtype)
    codes, scales, zeros = unpack_int4(weight)
    groups = torch.arange(weight.num_inputs, device=codes.device) // weight.group_size
    values = ((codes.float() - zeros.float()[groups]) * scales.float()[groups]).to(dtype).T
    if weight.inputs is None:
        return values.contiguous()
    return torch.empty_like(values, memory_format=torch.contiguous_format).index_copy_(1, weight.inputs.long(), values)


def weight_only_linear(x: Tensor, weight: QuantizedWeight, bias: Tensor | None) -> Tensor:
    """`reference.linear` with the dequantized weight."""
    return reference.linear(x, dequantize(weight, x.dtype), bias)


def quantize_activations(x: Tensor) -> tuple[Tensor, Tensor]:
    """Each token's inputs in groups of 128, the largest of a group becoming the largest float8.

    x: [T, in] -> float8_e4m3fn [T, in], float32 scales [ceil(in / 128), T], none below 1e-30.
    """
    num_tokens, num_inputs = x.shape
    num_groups = -(-num_inputs // FLOAT8_GROUP)
    padded = torch.nn.functional.pad(x.float(), (0, num_groups * FLOAT8_GROUP - num_inputs))
    groups = padded.view(num_tokens, num_groups, FLOAT8_GROUP)
    largest = groups.abs().amax(dim=-1, keepdim=True)
    scales = (largest / torch.finfo(FLOAT8).max).clamp_min(1e-30)
    values = (groups / scales).flatten(1)[:, :num_inputs].to(FLOAT8)
    return values.contiguous(), scales.squeeze(-1).T.contiguous()


def scaled_linear(x: Tensor, weight: Fp8Weight, bias: Tensor | None) -> Tensor:
    """`reference.linear` of the quantized activations with the dequantized weight, in float32, rounded once."""
    values, scales = quantize_activations(x)
    dequantized = values.float() * scales.T.repeat_interleave(FLOAT8_GROUP, dim=1)[:, : x.shape[1]]
    bias = None if bias is None else bias.float()
    return reference.linear(dequantized, dequantize(weight, torch.float32), bias).to(x.dtype)
