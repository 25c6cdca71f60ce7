"""Rotary embedding under the interpreter against its twin: in place, on q and k cut from one matrix."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import reference
from kernels.gpu import rope
from tests.kernels.gpu.agree import assert_agrees
from tests.kernels.gpu.drawn import dtypes, randn, seeds

TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 6e-2}


@given(
    tokens=st.integers(0, 3),
    heads=st.sampled_from([(1, 1), (3, 1), (6, 2), (9, 3), (4, 4)]),
    head_dim=st.sampled_from([2, 10, 64, 80, 96, 128, 256]),
    dtype=dtypes,
    seed=seeds,
    norm=st.booleans(),
)
@settings(max_examples=20, deadline=None)
def test_heads_turn_where_they_lie(
    tokens: int, heads: tuple[int, int], head_dim: int, dtype: torch.dtype, seed: int, norm: bool
) -> None:
    num_heads, num_kv_heads = heads
    qkv = randn(tokens, num_heads + 2 * num_kv_heads, head_dim, dtype=dtype, seed=seed)
    q, k, v = torch.split(qkv, [num_heads, num_kv_heads, num_kv_heads], dim=1)
    cos, sin = (randn(tokens, head_dim, dtype=dtype, seed=seed + place) for place in (1, 2))
    if not norm:
        assert_agrees(rope.rope, reference.rope, (q, k, cos, sin), TOLERANCE[dtype])
        return
    weights = [randn(head_dim, dtype=dtype, seed=seed + place) for place in (3, 4)]
    assert_agrees(rope.norm_rope, reference.norm_rope, (q, k, *weights, 1e-6, cos, sin), TOLERANCE[dtype])


def test_values_beside_them_stay() -> None:
    qkv = randn(2, 5, 64, dtype=torch.float32, seed=1)
    q, k, v = torch.split(qkv, [3, 1, 1], dim=1)
    before = v.clone()
    turned_q, turned_k = rope.rope(q, k, *(randn(2, 64, dtype=torch.float32, seed=place) for place in (2, 3)))
    assert turned_q is q and turned_k is k and torch.equal(v, before)
