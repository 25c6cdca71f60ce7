"""The C++ norm, rotation, gate and KV write against their twins in float64 or, where nothing is computed, exactly."""

import pytest
import torch
from torch import Tensor

from engine.kv_pool import KVLayout, KVPool
from kernels import cpu_build, reference
from kernels.cpu_ops import CpuOps

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2.0**-8}  # relative


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def ops(request: pytest.FixtureRequest) -> CpuOps:
    library = cpu_build.load()
    if library is None:
        pytest.skip("no C++ compiler here, or no AVX2")
    return CpuOps(library, request.param)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_near(ours: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), wanted, atol=1e-6, rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("shape", [(1, 576), (7, 61), (33, 5), (3, 5, 16), (200, 3, 64), (1, 1)])
def test_rms_norm(ops: CpuOps, shape: tuple[int, ...]) -> None:
    x, weight = randn(*shape, dtype=ops.dtype) * 3, randn(shape[-1], seed=1, dtype=ops.dtype)
    assert_near(ops.rms_norm(x, weight, 1e-5), reference.rms_norm(x.double(), weight.double(), 1e-5), ops.dtype)


def test_a_norms_weight_may_have_more_digits(ops: CpuOps) -> None:
    x, weight = randn(7, 61, dtype=ops.dtype), 1 + randn(61, seed=1) * 1e-3
    wanted = reference.rms_norm(x.double(), weight.double(), 1e-5)
    assert_near(ops.rms_norm(x, weight, 1e-5), wanted, ops.dtype)
    normed, residual = ops.add_rms_norm(x, x, weight, 1e-5)
    assert_near(normed, reference.rms_norm(residual.double(), weight.double(), 1e-5), ops.dtype)


def test_rms_norm_of_heads_inside_a_wider_row(ops: CpuOps) -> None:
    x, weight = randn(5, 9, 24, dtype=ops.dtype), randn(24, seed=1, dtype=ops.dtype)
    part = x[:, 2:5]
    assert torch.equal(ops.rms_norm(part, weight, 1e-6), ops.rms_norm(part.contiguous(), weight, 1e-6))


@pytest.mark.parametrize(("head_dim", "num_tokens"), [(64, 1), (10, 5), (24, 33), (128, 70)])
def test_rope(ops: CpuOps, head_dim: int, num_tokens: int) -> None:
    # Queries and keys stand in one row, as the fused product leaves them.
    qkv = randn(num_tokens, 8, head_dim, dtype=ops.dtype)
    q, k = qkv[:, :5], qkv[:, 5:7]
    angles = randn(num_tokens, head_dim // 2, seed=2)
    cos, sin = (torch.cat((part, part), -1).to(ops.dtype) for part in (angles.cos(), angles.sin()))
    wanted = reference.rope(q.double(), k.double(), cos.double(), sin.double())
    for ours, theirs in zip(ops.rope(q, k, cos, sin), wanted, strict=True):
        assert ours.is_contiguous() and ours.dtype == ops.dtype
        tolerance = 2e-6 if ops.dtype == torch.float32 else 2.0**-7
        torch.testing.assert_close(ours.double(), theirs, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("num_rows", "size"), [(1, 1536), (7, 61), (33, 3), (40, 1536)])
def test_silu_mul(ops: CpuOps, num_rows: int, size: int) -> None:
    gate_up = randn(num_rows, 2 * size, dtype=ops.dtype) * 4
    assert_near(ops.silu_mul(gate_up), reference.silu_mul(gate_up.double()), ops.dtype)


def test_silu_mul_where_the_exponential_ends(ops: CpuOps) -> None:
    gate = torch.tensor([[-1e30, -200.0, -90.0, -88.0, -0.0, 0.0, 88.0, 90.0, 1e30]], dtype=ops.dtype)
    out = ops.silu_mul(torch.cat((gate, torch.ones_like(gate)), 1))
    torch.testing.assert_close(
        out.double(), torch.nn.functional.silu(gate.double()), atol=1e-34, rtol=TOLERANCE[ops.dtype]
    )
    assert ops.silu_mul(torch.tensor([[torch.nan, 1.0]], dtype=ops.dtype)).isnan().all()


def test_rows_have_the_same_bits_in_any_company_and_on_any_number_of_threads(ops: CpuOps) -> None:
    x, weight = randn(200, 1030, dtype=ops.dtype), randn(1030, seed=1, dtype=ops.dtype)
    heads, cos, sin = x.view(200, 103, 10), randn(200, 10, dtype=ops.dtype), randn(200, 10, seed=1, dtype=ops.dtype)

    def everything(rows: slice) -> list[Tensor]:
        turned = ops.rope(heads[rows], heads[rows], cos[rows], sin[rows])
        return [ops.rms_norm(x[rows], weight, 1e-5), ops.silu_mul(x[rows]), *turned]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        wanted = everything(slice(None))
        torch.set_num_threads(2)
        for rows in (slice(None), slice(0, 1), slice(199, 200), slice(3, 40)):
            for ours, theirs in zip(everything(rows), wanted, strict=True):
                assert torch.equal(ours, theirs[rows])
    finally:
        torch.set_num_threads(before)


def test_kv_write_writes_its_slots_and_nothing_else(ops: CpuOps) -> None:
    pool = KVPool.allocate(KVLayout(3, 2, 4, 10, ops.dtype), 9)
    pool.tensor.normal_(generator=torch.Generator().manual_seed(1))
    twin = KVPool(pool.layout, pool.tensor.clone())
    # Keys and values stand in one row, as the fused product leaves them.
    kv = randn(6, 4, 10, dtype=ops.dtype)
    slots = torch.tensor([3, 4, 35, 0, 17, 18])
    ops.kv_write(kv[:, :2], kv[:, 2:], *pool.layer(1), slots)
    reference.kv_write(kv[:, :2], kv[:, 2:], *twin.layer(1), slots)
    assert torch.equal(pool.tensor, twin.tensor)


def test_what_they_cannot_take_is_refused(ops: CpuOps) -> None:
    x, weight = randn(4, 16, dtype=ops.dtype), randn(16, dtype=ops.dtype)
    with pytest.raises(AssertionError):
        ops.rms_norm(x.half(), weight, 1e-5)
    with pytest.raises(AssertionError):
        ops.rms_norm(x, weight[:8], 1e-5)
    with pytest.raises(AssertionError):
        ops.silu_mul(x.T)
    pool = KVPool.allocate(KVLayout(1, 2, 4, 8, ops.dtype), 3)
    key_cache, value_cache = pool.layer(0)
    new = randn(2, 2, 8, dtype=ops.dtype)
    with pytest.raises(AssertionError):
        ops.kv_write(new, new, key_cache.transpose(1, 2), value_cache.transpose(1, 2), torch.tensor([0, 1]))
    with pytest.raises(AssertionError):
        ops.kv_write(new, new, key_cache, value_cache, torch.tensor([0, 1, 2]))
