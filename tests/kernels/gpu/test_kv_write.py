"""Writing the cache under the interpreter: every bit as the twin writes it, and nothing else."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.kv_pool import KVLayout, KVPool
from kernels import reference
from kernels.gpu import kv_write
from tests.kernels.gpu.agree import assert_agrees
from tests.kernels.gpu.drawn import dtypes, randn, seeds

FLOAT8 = torch.float8_e4m3fn


def pool_of(num_kv_heads: int, block_size: int, head_dim: int, dtype: torch.dtype) -> Tensor:
    return KVPool.allocate(KVLayout(3, num_kv_heads, block_size, head_dim, dtype), 4).tensor


@given(
    tokens=st.integers(0, 5),
    num_kv_heads=st.integers(1, 3),
    head_dim=st.sampled_from([10, 64, 80, 128]),
    block_size=st.sampled_from([16, 32]),
    dtype=dtypes,
    seed=seeds,
    as_float8=st.booleans(),
)
@settings(max_examples=20, deadline=None)
def test_every_bit(
    tokens: int, num_kv_heads: int, head_dim: int, block_size: int, dtype: torch.dtype, seed: int, as_float8: bool
) -> None:
    qkv = randn(tokens, 4 * num_kv_heads, head_dim, dtype=dtype, seed=seed, scale=200.0)  # some beyond float8's 448
    _, k, v = torch.split(qkv, [2 * num_kv_heads, num_kv_heads, num_kv_heads], dim=1)
    pool = pool_of(num_kv_heads, block_size, head_dim, FLOAT8 if as_float8 else dtype)
    slots = torch.randperm(4 * block_size, generator=torch.Generator().manual_seed(seed))[:tokens]

    def whole_pool(write: object) -> object:
        def run(k: Tensor, v: Tensor, pool: Tensor, slots: Tensor) -> Tensor:
            write(k, v, pool[:, 1, 0], pool[:, 1, 1], slots)  # type: ignore[operator]
            return pool

        return run

    assert_agrees(whole_pool(kv_write.kv_write), whole_pool(reference.kv_write), (k, v, pool, slots), 0)  # type: ignore[arg-type]


def test_a_slot_of_minus_one_is_no_place() -> None:
    pool = pool_of(2, 16, 64, torch.float32)
    k, v = (randn(3, 2, 64, dtype=torch.float32, seed=seed) for seed in (1, 2))
    kv_write.kv_write(k, v, pool[:, 1, 0], pool[:, 1, 1], torch.tensor([-1, 17, -1]))
    wanted = pool_of(2, 16, 64, torch.float32)
    reference.kv_write(k[1:2], v[1:2], wanted[:, 1, 0], wanted[:, 1, 1], torch.tensor([17]))
    assert torch.equal(pool, wanted)


def test_float8_is_cut_and_keeps_nan() -> None:
    pool = pool_of(1, 16, 16, FLOAT8)
    k = torch.tensor([1e4, -1e4, torch.inf, torch.nan, 448.0, 464.0, 1.0, 0.0] * 2).view(1, 1, 16)
    kv_write.kv_write(k, k, pool[:, 0, 0], pool[:, 0, 1], torch.tensor([0]))
    written = pool[0, 0, 0, 0, 0, :8].float()
    assert written[:3].tolist() == [448.0, -448.0, 448.0] and written[3].isnan()
    assert written[4:].tolist() == [448.0, 448.0, 1.0, 0.0]
