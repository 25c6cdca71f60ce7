"""RMS norm under the interpreter against its twin, on drawn shapes."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import reference
from kernels.gpu import rms_norm
from tests.kernels.gpu.agree import TOLERANCE, assert_agrees

dtypes = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])


@given(rows=st.integers(0, 4), heads=st.integers(1, 3), size=st.integers(1, 700), dtype=dtypes, seed=st.integers(0, 99))
@settings(max_examples=12, deadline=None)
def test_a_norm_per_row_and_head(rows: int, heads: int, size: int, dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, heads + 2, size, generator=generator).to(dtype)[:, 1 : heads + 1]  # a slice: strided heads
    weight = torch.randn(size, generator=generator).to(dtype)
    assert_agrees(rms_norm.rms_norm, reference.rms_norm, (x, weight, 1e-5), TOLERANCE[dtype])


def test_a_weight_of_more_digits_is_not_rounded() -> None:
    generator = torch.Generator().manual_seed(3)
    x, weight = torch.randn(5, 2, 300, generator=generator).bfloat16(), torch.randn(300, generator=generator)
    assert_agrees(rms_norm.rms_norm, reference.rms_norm, (x, weight, 1e-5), 1e-2)
    x = x.flatten(1)[:, :300]
    assert_agrees(rms_norm.add_rms_norm, reference.add_rms_norm, (x, x.flip(0), weight, 1e-5), 1e-2)


@given(rows=st.integers(0, 4), size=st.integers(1, 700), dtype=dtypes, seed=st.integers(0, 99))
@settings(max_examples=12, deadline=None)
def test_with_the_addition(rows: int, size: int, dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, size + 3, generator=generator).to(dtype)[:, :size]
    residual = torch.randn(rows, size, generator=generator).to(dtype)
    weight = torch.randn(size, generator=generator).to(dtype)
    assert_agrees(rms_norm.add_rms_norm, reference.add_rms_norm, (x, residual, weight, 1e-5), TOLERANCE[dtype])
