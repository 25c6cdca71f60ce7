"""Linears with float8 weights under the interpreter against their twins: drawn shapes, scales of every kind."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import quantized_linear
from kernels.gpu.fp8_linear import fp8_linear, quantize_activations, tile_shape
from kernels.quantized_linear import FLOAT8, FLOAT8_GROUP, Fp8Weight, scaled_linear, weight_only_linear
from tests.kernels.gpu.agree import TOLERANCE, assert_agrees
from tests.kernels.gpu.drawn import dtypes, randn, seeds


def drawn_weight(num_inputs: int, num_outputs: int, group_size: int, seed: int) -> Fp8Weight:
    """Every finite float8, subnormals and the largest included."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (num_outputs, num_inputs), dtype=torch.uint8, generator=generator)
    codes = torch.where(codes & 0x7F == 0x7F, codes & 0x80, codes)  # no NaN
    scales = torch.rand(-(-num_inputs // group_size), num_outputs, generator=generator) * 1e-3
    return Fp8Weight(codes.view(FLOAT8), scales, group_size)


def check(x: Tensor, weight: Fp8Weight, bias: Tensor | None, quantizes_x: bool, num_splits: int) -> None:
    def launch(x: Tensor, values: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
        return fp8_linear(x, Fp8Weight(values, scales, weight.group_size), bias, quantizes_x, num_splits)

    def twin(x: Tensor, values: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
        return (scaled_linear if quantizes_x else weight_only_linear)(x, weight, bias)

    assert_agrees(launch, twin, (x, weight.values, weight.scales, bias), TOLERANCE[x.dtype])


@given(
    tokens=st.integers(0, 20),
    num_inputs=st.integers(1, 400),
    num_outputs=st.integers(1, 150),
    has_groups=st.booleans(),
    dtype=dtypes,
    seed=seeds,
    quantizes_x=st.booleans(),
    num_splits=st.sampled_from([1, 2]),
    has_bias=st.booleans(),
)
@settings(max_examples=20, deadline=None)
def test_drawn(
    tokens: int,
    num_inputs: int,
    num_outputs: int,
    has_groups: bool,
    dtype: torch.dtype,
    seed: int,
    quantizes_x: bool,
    num_splits: int,
    has_bias: bool,
) -> None:
    weight = drawn_weight(num_inputs, num_outputs, FLOAT8_GROUP if has_groups else num_inputs, seed)
    x = randn(tokens, num_inputs + 3, dtype=dtype, seed=seed, scale=0.5)[:, :num_inputs]
    bias = randn(num_outputs, dtype=dtype, seed=seed + 1) if has_bias else None

    check(x, weight, bias, quantizes_x, num_splits)


@pytest.mark.parametrize("num_splits", [1, 2])
def test_a_bias_is_added_once(num_splits: int) -> None:
    bias = randn(24, dtype=torch.float16, seed=5)
    x = randn(3, 256, dtype=torch.float16, seed=4, scale=0.5)
    check(x, drawn_weight(256, 24, FLOAT8_GROUP, seed=3), bias, True, num_splits)


@given(tokens=st.integers(1, 4), num_inputs=st.integers(1, 1300), dtype=dtypes, seed=seeds)
@settings(max_examples=12, deadline=None)
def test_activations(tokens: int, num_inputs: int, dtype: torch.dtype, seed: int) -> None:
    x = randn(tokens, num_inputs + 3, dtype=dtype, seed=seed, scale=4.0)[:, 3:]
    x[:, :130] = 0.0  # a group of zeros
    assert_agrees(quantize_activations, quantized_linear.quantize_activations, (x,), 0)


def test_quantized_activations_are_near_what_they_were() -> None:
    x = randn(5, 300, dtype=torch.float32, seed=0)
    values, scales = quantized_linear.quantize_activations(x)
    back = values.float() * scales.T.repeat_interleave(FLOAT8_GROUP, dim=1)[:, :300]
    # 3 bits of mantissa: half of the last is 1/16; below the smallest normal number the step is 2^-9 of the scale.
    assert ((back - x).abs() <= torch.maximum(x.abs() / 16, scales.max() * 2**-10)).all()
    assert values.float().abs().max() == torch.finfo(FLOAT8).max


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 100, 120])
@pytest.mark.parametrize("element_bytes", [1, 2])
def test_a_tile_fits_shared_memory(element_bytes: int, capability: int) -> None:
    for tokens in (1, 16, 17, 32, 64, 65, 8192):
        shape = tile_shape(tokens, element_bytes, capability)
        assert shape.tokens >= min(tokens, 64)
        largest = (227 if capability in (90, 100) else 99) << 10
        assert shape.stages * 128 * (shape.outputs + element_bytes * shape.tokens) <= largest
