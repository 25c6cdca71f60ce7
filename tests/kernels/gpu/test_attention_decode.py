"""Decode attention under the interpreter against its twin, on drawn batches of a pool full of NaN."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.kv_pool import KVLayout, KVPool
from kernels import reference
from kernels.gpu.attention_decode import attention_decode, choose_num_splits, tile_of
from tests.kernels.gpu.agree import TOLERANCE, assert_agrees
from tests.kernels.gpu.drawn import dtypes, randn, seeds

FLOAT8 = torch.float8_e4m3fn


@dataclass(frozen=True)
class Batch:
    """Arguments of a launch; `clean` are the twin's caches: it wants finite numbers where it masks."""

    q: Tensor
    key_cache: Tensor
    value_cache: Tensor
    clean: tuple[Tensor, Tensor]
    tables: Tensor
    lens: Tensor
    scale: float


def batch_of(
    lens: list[int],
    heads: tuple[int, int],
    head_dim: int,
    block_size: int,
    dtype: torch.dtype,
    seed: int,
    cache_dtype: torch.dtype | None = None,
) -> Batch:
    num_heads, num_kv_heads = heads
    width = max(-(-max(lens, default=0) // block_size), 1)
    layout = KVLayout(2, num_kv_heads, block_size, head_dim, cache_dtype or dtype)
    num_blocks = max(1, len(lens)) * width + 1
    values = randn(num_blocks, *layout.block_shape, dtype=torch.float32, seed=seed).to(layout.dtype)
    clean = KVPool(layout, values)
    poisoned = KVPool(layout, torch.full_like(values.float(), torch.nan).to(layout.dtype))
    order = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(seed))[: len(lens) * width]
    tables = order.view(len(lens), width).to(torch.int32)
    for row, length in enumerate(lens):
        for place in range(length):
            block, slot = tables[row, place // block_size], place % block_size
            poisoned.tensor[block, :, :, :, slot] = clean.tensor[block, :, :, :, slot]
    q = randn(len(lens), num_heads + 1, head_dim, dtype=dtype, seed=seed + 1)[:, :num_heads]
    return Batch(q, *poisoned.layer(1), clean.layer(1), tables, torch.tensor(lens, dtype=torch.int32), head_dim**-0.5)


def check(batch: Batch, window: int | None, num_splits: int | None, tolerance: float, cap: float | None = None) -> None:
    def launch(q: Tensor, keys: Tensor, values: Tensor, tables: Tensor, lens: Tensor, *_: Tensor) -> Tensor:
        return attention_decode(q, keys, values, tables, lens, batch.scale, window, cap, num_splits)

    def twin(q: Tensor, keys: Tensor, values: Tensor, tables: Tensor, lens: Tensor, *clean: Tensor) -> Tensor:
        return reference.attention_decode(q, *clean, tables, lens, batch.scale, window, cap)  # type: ignore[call-arg, arg-type]

    arguments = (batch.q, batch.key_cache, batch.value_cache, batch.tables, batch.lens, *batch.clean)
    assert_agrees(launch, twin, arguments, tolerance)


@given(
    lens=st.lists(st.integers(1, 150), min_size=1, max_size=3),
    heads=st.sampled_from([(1, 1), (3, 1), (6, 2), (20, 1)]),
    head_dim=st.sampled_from([10, 64, 80, 96, 128, 256]),
    block_size=st.sampled_from([16, 32]),
    dtype=dtypes,
    seed=seeds,
    window=st.none() | st.integers(1, 160),
    num_splits=st.sampled_from([None, 1, 2, 4]),
    cap=st.sampled_from([None, None, 0.5, 30.0]),
)
@settings(max_examples=25, deadline=None)
def test_drawn_batches(
    lens: list[int],
    heads: tuple[int, int],
    head_dim: int,
    block_size: int,
    dtype: torch.dtype,
    seed: int,
    window: int | None,
    num_splits: int | None,
    cap: float | None,
) -> None:
    batch = batch_of(lens, heads, head_dim, block_size, dtype, seed)
    check(batch, window, num_splits, TOLERANCE[dtype], cap)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_splits", [1, 4])
def test_a_float8_cache(dtype: torch.dtype, num_splits: int) -> None:
    check(batch_of([70, 1, 130], (6, 2), 64, 16, dtype, 5, FLOAT8), None, num_splits, TOLERANCE[dtype])


@pytest.mark.parametrize("num_splits", [1, 2])
def test_a_row_without_tokens_is_zero_and_harms_nobody(num_splits: int) -> None:
    batch = batch_of([40, 0, 7], (4, 2), 64, 16, torch.float32, 3)
    arguments = batch.q, batch.key_cache, batch.value_cache, batch.tables, batch.lens, batch.scale, None
    out = attention_decode(*arguments, num_splits=num_splits)
    assert torch.equal(out[1], torch.zeros_like(out[1]))
    others = torch.tensor([0, 2])
    alone = attention_decode(
        batch.q[others],
        batch.key_cache,
        batch.value_cache,
        batch.tables[others],
        batch.lens[others],
        batch.scale,
        None,
        num_splits=num_splits,
    )
    assert torch.equal(out[others], alone)


def test_nobody_at_all() -> None:
    batch = batch_of([], (4, 2), 64, 16, torch.float32, 3)
    out = attention_decode(batch.q, batch.key_cache, batch.value_cache, batch.tables, batch.lens, batch.scale, None)
    assert out.shape == (0, 4, 64)


@given(st.integers(1, 5000), st.integers(0, 5000), st.integers(1, 200))
def test_splits_fill_the_device_and_no_more(num_programs: int, num_tiles: int, num_multiprocessors: int) -> None:
    splits = choose_num_splits(num_programs, num_tiles, num_multiprocessors)
    assert splits in (1, 2, 4, 8, 16, 32)
    assert splits == 1 or (splits * num_programs <= 2 * num_multiprocessors and 4 * splits <= num_tiles)
    larger = 2 * splits
    assert splits == 32 or larger * num_programs > 2 * num_multiprocessors or 4 * larger > num_tiles


@pytest.mark.parametrize(
    ("head_dim", "element_bytes", "block_size", "tile"),
    [(64, 2, 16, 64), (128, 2, 16, 64), (80, 2, 32, 64), (256, 2, 16, 32), (256, 4, 16, 16), (256, 4, 32, 32)],
)
def test_the_tile_fits_shared_memory(head_dim: int, element_bytes: int, block_size: int, tile: int) -> None:
    assert tile_of(head_dim, element_bytes, block_size) == tile
