"""Linears with 4-bit weights under the interpreter against their twin: drawn shapes, every way through the kernel."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.gpu.int4_linear import TileShape, int4_linear, tile_shape
from kernels.quantized_linear import Int4Weight, pack_int4, unpack_int4, weight_only_linear
from tests.kernels.gpu.agree import TOLERANCE, assert_agrees
from tests.kernels.gpu.drawn import dtypes, randn, seeds

# Sums scaled, weights scaled, one product per tile.
SHAPES = [TileShape(16, 32, 1, 4), TileShape(32, 32, 1, 4), TileShape(16, 64, 1, 4, joined=True)]


def drawn_weight(
    num_inputs: int, num_outputs: int, group_size: int, seed: int, is_permuted: bool = False
) -> Int4Weight:
    """Codes and zero points over their whole range."""
    generator = torch.Generator().manual_seed(seed)
    num_groups = -(-num_inputs // group_size)
    codes = torch.randint(0, 16, (num_inputs, num_outputs), dtype=torch.uint8, generator=generator)
    zeros = torch.randint(0, 17, (num_groups, num_outputs), dtype=torch.uint8, generator=generator)
    scales = (torch.rand(num_groups, num_outputs, generator=generator) * 0.02).half()
    inputs = torch.randperm(num_inputs, generator=generator).int() if is_permuted else None
    return pack_int4(codes, scales, zeros, group_size, inputs)


def check(
    x: Tensor, weight: Int4Weight, bias: Tensor | None, num_splits: int | None = None, shape: TileShape | None = None
) -> None:
    def launch(x: Tensor, words: Tensor, scales_zeros: Tensor, inputs: Tensor | None, bias: Tensor | None) -> Tensor:
        copied = Int4Weight(words, scales_zeros, weight.num_inputs, weight.group_size, inputs)
        return int4_linear(x, copied, bias, num_splits, shape)

    def twin(x: Tensor, words: Tensor, scales_zeros: Tensor, inputs: Tensor | None, bias: Tensor | None) -> Tensor:
        return weight_only_linear(x, weight, bias)

    arguments = (x, weight.words, weight.scales_zeros, weight.inputs, bias)
    assert_agrees(launch, twin, arguments, TOLERANCE[x.dtype])


@given(
    tokens=st.integers(0, 20),
    words=st.integers(1, 70),
    num_outputs=st.integers(1, 70),
    group_size=st.sampled_from([32, 64, 128, None]),
    dtype=dtypes,
    seed=seeds,
    shape=st.sampled_from(SHAPES),
    num_splits=st.sampled_from([1, 2, 4]),
    is_permuted=st.booleans(),
    has_bias=st.booleans(),
)
@settings(max_examples=20, deadline=None)
def test_drawn(
    tokens: int,
    words: int,
    num_outputs: int,
    group_size: int | None,
    dtype: torch.dtype,
    seed: int,
    shape: TileShape,
    num_splits: int,
    is_permuted: bool,
    has_bias: bool,
) -> None:
    num_inputs = 8 * words
    weight = drawn_weight(num_inputs, num_outputs, group_size or num_inputs, seed, is_permuted)
    x = randn(tokens, num_inputs + 8, dtype=dtype, seed=seed, scale=0.5)[:, :num_inputs]
    bias = randn(num_outputs, dtype=dtype, seed=seed + 1) if has_bias else None
    check(x, weight, bias, num_splits, shape)


@pytest.mark.parametrize("tokens", [1, 40])
def test_the_shapes_that_are_chosen(tokens: int) -> None:
    weight = drawn_weight(520, 136, 128, seed=3)
    check(randn(tokens, 520, dtype=torch.float16, seed=4, scale=0.5), weight, None)


@pytest.mark.parametrize("num_splits", [1, 2])
def test_a_bias_is_added_once(num_splits: int) -> None:
    weight, bias = drawn_weight(256, 24, 32, seed=3), randn(24, dtype=torch.float16, seed=5)
    check(randn(3, 256, dtype=torch.float16, seed=4, scale=0.5), weight, bias, num_splits, SHAPES[0])


def test_packing_loses_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (296, 24), dtype=torch.uint8, generator=generator)
    zeros = torch.randint(0, 17, (3, 24), dtype=torch.uint8, generator=generator)
    scales = torch.randn(3, 24, generator=generator).half()
    for ours, wanted in zip(
        unpack_int4(pack_int4(codes, scales, zeros, 128, None)), (codes, scales, zeros), strict=True
    ):
        assert torch.equal(ours, wanted)


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 100, 120])
def test_a_tile_fits_shared_memory(capability: int) -> None:
    for tokens in (1, 16, 17, 32, 64, 65, 8192):
        shape = tile_shape(tokens, 2, capability)
        assert shape.tokens >= min(tokens, 64)
        largest = (227 if capability in (90, 100) else 99) << 10
        assert shape.stages * (128 * shape.outputs + 512 * shape.tokens) <= largest
