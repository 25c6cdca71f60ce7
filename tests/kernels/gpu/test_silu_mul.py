"""silu(gate) * up under the interpreter against its twin."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import reference
from kernels.gpu import silu_mul
from tests.kernels.gpu.agree import TOLERANCE, assert_agrees
from tests.kernels.gpu.drawn import dtypes, randn, seeds


@given(rows=st.integers(0, 3), size=st.integers(1, 1100), dtype=dtypes, seed=seeds, apart=st.sampled_from([0, 5]))
@settings(max_examples=12, deadline=None)
def test_rows(rows: int, size: int, dtype: torch.dtype, seed: int, apart: int) -> None:
    gate_up = randn(rows, 2 * size + apart, dtype=dtype, seed=seed, scale=4.0)[:, : 2 * size]
    assert_agrees(silu_mul.silu_mul, reference.silu_mul, (gate_up,), TOLERANCE[dtype])
