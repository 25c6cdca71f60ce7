"""Block copies under the interpreter: every bit as the twin moves it, and nothing else."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bench.kernels.block_copy import small_cases
from bench.kernels.case import Inputs, KernelCase
from engine.kv_pool import KVLayout, KVPool
from kernels import block_copy
from kernels.gpu import block_copy as gpu_block_copy
from tests.kernels.gpu.agree import assert_agrees
from tests.kernels.gpu.drawn import dtypes, seeds

# One vector, some, a whole tile of 8 KiB, one vector more than that, several tiles.
BLOCK_BYTES = [16, 48, 8192, 8208, 20480]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_bytes(*shape: int, seed: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(seed))


def distinct(count: int, out_of: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randperm(out_of, generator=generator(seed))[:count].to(dtype)


def both_pools(copy: Callable[..., None]) -> Callable[..., list[Tensor]]:
    """The source is compared too: it stays as it is."""

    def run(source: Tensor, source_ids: Tensor, target: Tensor, target_ids: Tensor) -> list[Tensor]:
        copy(source, source_ids, target, target_ids)
        return [source, target]

    return run


@given(
    num_copied=st.integers(0, 3),
    block_bytes=st.sampled_from(BLOCK_BYTES),
    ids_dtype=st.sampled_from([torch.int32, torch.int64]),
    seed=seeds,
)
@settings(max_examples=20, deadline=None)
def test_copy_blocks(num_copied: int, block_bytes: int, ids_dtype: torch.dtype, seed: int) -> None:
    source, target = random_bytes(4, block_bytes, seed=seed), random_bytes(5, block_bytes, seed=seed + 1)
    # A source block may be wanted twice.
    source_ids = torch.randint(0, 4, (num_copied,), dtype=ids_dtype, generator=generator(seed))
    arguments = (source, source_ids, target, distinct(num_copied, 5, ids_dtype, seed))
    launch, twin = both_pools(gpu_block_copy.copy_blocks), both_pools(block_copy.copy_blocks)
    assert_agrees(launch, twin, arguments, 0)


def test_blocks_move_inside_one_pool() -> None:
    pool = random_bytes(4, 64, seed=1)
    before = pool.clone()
    gpu_block_copy.copy_blocks(pool, torch.tensor([3, 0]), pool, torch.tensor([1, 2]))
    assert torch.equal(pool, before[[0, 3, 0, 3]])


@pytest.mark.parametrize("sizes", [(16, 16), (16, 32), (32, 16), (32, 32)], ids=str)
@given(data=st.data(), dtype=st.one_of(dtypes, st.just(torch.float8_e4m3fn)), seed=seeds)
@settings(max_examples=10, deadline=None)
def test_reshard_blocks(sizes: tuple[int, int], data: st.DataObject, dtype: torch.dtype, seed: int) -> None:
    source_size, target_size = sizes
    head_dim = data.draw(st.sampled_from([16, 48, 80]))
    num_heads = data.draw(st.integers(1, 3))
    source_head, target_head = data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2))
    num_tokens = data.draw(st.sampled_from([37, 48, 33, 16, 1, 0]))

    def pool(num_heads: int, block_size: int, seed: int) -> Tensor:
        layout = KVLayout(2, num_heads, block_size, head_dim, dtype)
        return KVPool.over(layout, random_bytes(5 * layout.block_bytes, seed=seed)).tensor

    def table(block_size: int, seed: int) -> Tensor:
        return distinct(-(-num_tokens // block_size), 5, torch.int32, seed)

    def run(reshard: Callable[..., None]) -> Callable[..., list[Tensor]]:
        def resharded(source: Tensor, source_table: Tensor, target: Tensor, target_table: Tensor) -> None:
            heads = {"source_head": source_head, "target_head": target_head, "num_heads": num_heads}
            reshard(source, source_table, target, target_table, num_tokens, **heads)

        return both_pools(resharded)

    arguments = (
        pool(source_head + num_heads + data.draw(st.integers(0, 1)), source_size, seed),
        table(source_size, seed),
        pool(target_head + num_heads + data.draw(st.integers(0, 1)), target_size, seed + 1),
        table(target_size, seed + 1),
    )
    assert_agrees(run(gpu_block_copy.reshard_blocks), run(block_copy.reshard_blocks), arguments, 0)


@pytest.mark.parametrize("case", small_cases(), ids=lambda case: case.name)
def test_small_cases(case: KernelCase) -> None:
    """All pieces of one target rank, as the cases for a GPU have them."""
    assert_agrees(case.launch, case.twin, case.make(Inputs(torch.device("cpu"))), case.tolerance)


def test_what_no_vector_can_move_is_refused() -> None:
    ids = torch.tensor([0])
    with pytest.raises(AssertionError, match="where a vector may"):
        gpu_block_copy.copy_blocks(random_bytes(2, 40, seed=1), ids, random_bytes(2, 40, seed=2), ids)
