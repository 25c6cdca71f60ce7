"""The C++ paged attention against its twin in float64 on the same caches."""

import pytest
import torch
from torch import Tensor

from engine.kv_pool import KVLayout, KVPool
from kernels import cpu_build, reference
from kernels.cpu_ops import CpuOps

TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 2.0**-8}
LENS = [1, 5, 16, 17, 255, 256, 257, 700]


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def ops(request: pytest.FixtureRequest) -> CpuOps:
    library = cpu_build.load()
    if library is None:
        pytest.skip("no C++ compiler here, or no AVX2")
    return CpuOps(library, request.param)


class Step:
    """A decode step over sequences of given lengths on scattered blocks; what is no sequence's is NaN."""

    def __init__(
        self,
        dtype: torch.dtype,
        lens: list[int],
        heads: tuple[int, int] = (9, 3),
        head_dim: int = 64,
        block_size: int = 16,
    ) -> None:
        generator = torch.Generator().manual_seed(5)
        num_heads, num_kv_heads = heads
        counts = [-(-length // block_size) for length in lens]
        order = torch.randperm(sum(counts) + 3, generator=generator).tolist()
        pool = KVPool.allocate(KVLayout(2, num_kv_heads, block_size, head_dim, dtype), len(order))
        pool.tensor.normal_(generator=generator)
        self.clean = KVPool(pool.layout, pool.tensor.clone())
        self.pool = pool
        self.tables = torch.zeros(len(lens), max(counts), dtype=torch.int32)
        for row, (length, count) in enumerate(zip(lens, counts, strict=True)):
            blocks = [order.pop() for _ in range(count)]
            self.tables[row] = torch.tensor(blocks + blocks[:1] * (max(counts) - count))
            if length % block_size:
                pool.tensor[blocks[-1], :, :, :, length % block_size :] = torch.nan
        pool.tensor[order] = torch.nan
        self.lens = torch.tensor(lens, dtype=torch.int32)
        self.q = torch.randn(len(lens), num_heads, head_dim, generator=generator).to(dtype)
        self.scale: float = head_dim**-0.5

    def ours(self, ops: CpuOps, window: int | None, rows: slice = slice(None)) -> Tensor:
        key_cache, value_cache = self.pool.layer(1)
        return ops.attention_decode(
            self.q[rows], key_cache, value_cache, self.tables[rows], self.lens[rows], self.scale, window
        )

    def wanted(self, window: int | None) -> Tensor:
        keys, values = (cache.double() for cache in self.clean.layer(1))
        return reference.attention_decode(self.q.double(), keys, values, self.tables, self.lens, self.scale, window)


@pytest.mark.parametrize("window", [None, 1, 16, 33, 300, 5000])
@pytest.mark.parametrize("block_size", [1, 4, 16, 64])
def test_decode_ragged_and_windowed(ops: CpuOps, window: int | None, block_size: int) -> None:
    step = Step(ops.dtype, LENS, block_size=block_size)
    ours = step.ours(ops, window)
    assert ours.dtype == ops.dtype
    torch.testing.assert_close(ours.double(), step.wanted(window), atol=TOLERANCE[ops.dtype], rtol=TOLERANCE[ops.dtype])


@pytest.mark.parametrize("heads", [(1, 1), (4, 4), (14, 2), (8, 1), (6, 3), (5, 1)])
@pytest.mark.parametrize("head_dim", [8, 24, 64, 128])
def test_decode_heads(ops: CpuOps, heads: tuple[int, int], head_dim: int) -> None:
    step = Step(ops.dtype, [1, 37, 290], heads, head_dim)
    torch.testing.assert_close(
        step.ours(ops, None).double(), step.wanted(None), atol=TOLERANCE[ops.dtype], rtol=TOLERANCE[ops.dtype]
    )


def test_decode_of_heads_that_are_not_whole_vectors(ops: CpuOps) -> None:
    step = Step(ops.dtype, [16, 32], (4, 2), 10)
    torch.testing.assert_close(step.ours(ops, None).double(), step.wanted(None), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("window", [None, 100])
def test_a_sequence_has_the_same_bits_in_any_company_and_on_any_number_of_threads(
    ops: CpuOps, window: int | None
) -> None:
    step = Step(ops.dtype, [700, 3, 1500, 256, 900, 41])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        wanted = step.ours(ops, window)
        torch.set_num_threads(2)
        for rows in (slice(None), slice(2, 5), *(slice(row, row + 1) for row in range(6))):
            assert torch.equal(step.ours(ops, window, rows), wanted[rows])
    finally:
        torch.set_num_threads(before)


def test_queries_inside_a_wider_row(ops: CpuOps) -> None:
    step = Step(ops.dtype, [20, 30])
    wanted = step.ours(ops, None)
    wide = torch.cat((step.q, step.q), dim=1)
    step.q = wide[:, 9:]
    assert torch.equal(step.ours(ops, None), wanted)


def test_scores_far_apart_do_not_overflow(ops: CpuOps) -> None:
    step = Step(ops.dtype, [300])
    step.q *= 1000
    ours = step.ours(ops, None)
    assert ours.isfinite().all()
    torch.testing.assert_close(ours.double(), step.wanted(None), atol=2e-2, rtol=2e-2)


def test_what_it_cannot_take_is_refused(ops: CpuOps) -> None:
    step = Step(ops.dtype, [20, 30])
    key_cache, value_cache = step.pool.layer(1)
    args = step.tables, step.lens, step.scale, None
    with pytest.raises(AssertionError):
        ops.attention_decode(step.q.half(), key_cache, value_cache, *args)
    with pytest.raises(AssertionError):
        ops.attention_decode(step.q, key_cache, value_cache, step.tables.long(), *args[1:])
    with pytest.raises(AssertionError):
        ops.attention_decode(step.q, key_cache[..., :32], value_cache[..., :32], *args)
