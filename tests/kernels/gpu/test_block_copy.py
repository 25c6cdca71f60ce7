"""The re-shard under the interpreter: every bit as the twin moves it, and nothing else."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bench.kernels.block_copy import small_cases
from bench.kernels.case import Inputs, KernelCase
from kernels import block_copy
from kernels.gpu import block_copy as gpu_block_copy
from tests.kernels.gpu.agree import assert_agrees
from tests.kernels.gpu.drawn import seeds

POOL_BLOCKS = 9
# One vector, some, a whole tile of 8 KiB, one vector more than that.
ROW_BYTES = [16, 48, 8192, 8208]


def random_pool(block_bytes: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (POOL_BLOCKS * block_bytes,), dtype=torch.uint8, generator=generator)


def both_pools(reshard: Callable[..., None], place: Callable[[Tensor], Any], sizes: dict[str, int]) -> Any:
    """The source is compared too: it stays as it is."""

    def run(source: Tensor, target: Tensor, ids: Tensor) -> list[Tensor]:
        reshard(place(source), place(target), ids, **sizes)
        return [source, target]

    return run


def assert_moves_alike(source: Tensor, target: Tensor, ids: Tensor, sizes: dict[str, int]) -> None:
    launch = both_pools(gpu_block_copy.reshard_blocks, Tensor.data_ptr, sizes)
    twin = both_pools(block_copy.reshard_blocks, lambda tensor: tensor, sizes)
    assert_agrees(launch, twin, (source, target, ids), 0)


@given(
    num_copied=st.integers(0, 5),
    num_rows=st.integers(1, 5),
    row_bytes=st.sampled_from(ROW_BYTES),
    around=st.tuples(*[st.sampled_from([0, 16, 48])] * 4),
    seed=seeds,
)
@settings(max_examples=40, deadline=None)
def test_reshard_blocks(
    num_copied: int, num_rows: int, row_bytes: int, around: tuple[int, int, int, int], seed: int
) -> None:
    sizes = {
        "num_rows": num_rows,
        "row_bytes": row_bytes,
        "source_block_bytes": num_rows * (around[0] + row_bytes + around[1]),
        "source_byte": around[0],
        "target_block_bytes": num_rows * (around[2] + row_bytes + around[3]),
        "target_byte": around[2],
    }
    source = random_pool(sizes["source_block_bytes"], seed)
    target = random_pool(sizes["target_block_bytes"], seed + 1)
    generator = torch.Generator().manual_seed(seed)
    source_ids = torch.randint(0, POOL_BLOCKS, (num_copied,), dtype=torch.int32, generator=generator)  # some twice
    target_ids = torch.randperm(POOL_BLOCKS, generator=generator)[:num_copied].int()
    assert_moves_alike(source, target, torch.stack([source_ids, target_ids]), sizes)


@pytest.mark.parametrize("case", small_cases(), ids=lambda case: case.name)
def test_small_cases(case: KernelCase) -> None:
    """All pieces of one target rank, as the cases for a GPU have them."""
    assert_agrees(case.launch, case.twin, case.make(Inputs(torch.device("cpu"))), case.tolerance)


SIZES = {
    "num_rows": 2,
    "row_bytes": 32,
    "source_block_bytes": 64,
    "source_byte": 0,
    "target_block_bytes": 128,
    "target_byte": 16,
}


@pytest.mark.parametrize("change", [{"row_bytes": 24}, {"source_block_bytes": 80}, {"target_byte": 8}], ids=str)
def test_what_no_vector_can_move_is_refused(change: dict[str, int]) -> None:
    ids = torch.zeros(2, 1, dtype=torch.int32)
    with pytest.raises(AssertionError, match="where a vector may"):
        gpu_block_copy.reshard_blocks(0, 0, ids, **SIZES | change)
    with pytest.raises(AssertionError, match="where a vector may"):
        gpu_block_copy.reshard_blocks(8, 0, ids, **SIZES)


@pytest.mark.parametrize("change", [{"row_bytes": 48}, {"target_byte": 48}, {"source_byte": -16}, {"num_rows": 3}])
def test_a_run_that_leaves_its_row_is_refused(change: dict[str, int]) -> None:
    with pytest.raises(AssertionError):
        gpu_block_copy.reshard_blocks(0, 0, torch.zeros(2, 1, dtype=torch.int32), **SIZES | change)
