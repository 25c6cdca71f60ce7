"""Prefill attention under the interpreter against its twin: drawn ragged batches on a pool full of NaN."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.kv_pool import KVLayout, KVPool
from kernels import reference
from kernels.gpu.attention_prefill import attention_prefill, tile_shape
from kernels.reference import PrefillMeta
from tests.kernels.gpu.agree import TOLERANCE, assert_agrees
from tests.kernels.gpu.drawn import dtypes, randn, seeds

CPU = torch.device("cpu")
FLOAT8 = torch.float8_e4m3fn
Sequences = list[tuple[int, int]]  # per sequence: cached tokens, new tokens


class Batch:
    """Sequences whose contexts lie on scattered blocks; all that is not theirs is NaN, and finite for the twin."""

    def __init__(
        self,
        sequences: Sequences,
        heads: tuple[int, int],
        head_dim: int,
        block_size: int,
        dtype: torch.dtype,
        seed: int,
        cache_dtype: torch.dtype | None = None,
    ) -> None:
        num_heads, num_kv_heads = heads
        layout = KVLayout(2, num_kv_heads, block_size, head_dim, cache_dtype or dtype)
        num_blocks = [-(-(context + new) // block_size) or 1 for context, new in sequences]
        values = randn(sum(num_blocks) + 1, *layout.block_shape, dtype=torch.float32, seed=seed)
        self.clean = KVPool(layout, values.to(layout.dtype))
        self.poisoned = KVPool(layout, torch.full_like(values, torch.nan).to(layout.dtype))
        ids = iter(torch.randperm(len(values), generator=torch.Generator().manual_seed(seed)).tolist())
        self.tables = [[next(ids) for _ in range(count)] for count in num_blocks]
        for table, (context, _) in zip(self.tables, sequences, strict=True):
            for place in range(context):
                block, slot = table[place // block_size], place % block_size
                self.poisoned.tensor[block, :, :, :, slot] = self.clean.tensor[block, :, :, :, slot]
        cu_seqlens = [sum(new for _, new in sequences[:index]) for index in range(len(sequences) + 1)]
        self.meta = PrefillMeta.of(cu_seqlens, [context for context, _ in sequences], self.tables, CPU)
        qkv = randn(cu_seqlens[-1], num_heads + 2 * num_kv_heads, head_dim, dtype=dtype, seed=seed + 1)
        self.q, self.k, self.v = torch.split(qkv, [num_heads, num_kv_heads, num_kv_heads], dim=1)
        self.scale = head_dim**-0.5

    def check(self, window: int | None, tolerance: float, cap: float | None = None) -> None:
        """The kernel on the poisoned pool equals the twin on the clean one."""

        def launch(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, *_: Tensor) -> Tensor:
            return attention_prefill(q, k, v, keys, values, self.meta, self.scale, window, cap)

        def twin(q: Tensor, k: Tensor, v: Tensor, *caches: Tensor) -> Tensor:
            return reference.attention_prefill(q, k, v, caches[2], caches[3], self.meta, self.scale, window, cap)

        meta = (self.meta.block_tables, self.meta.cu_seqlens_q_device, self.meta.context_lens_device)
        caches = (*self.poisoned.layer(1), *self.clean.layer(1))
        assert_agrees(launch, twin, (self.q, self.k, self.v, *caches), tolerance, also_read=meta)


@given(
    sequences=st.lists(st.tuples(st.integers(0, 90), st.integers(0, 70)), max_size=3),
    heads=st.sampled_from([(1, 1), (3, 1), (6, 2), (20, 1)]),
    head_dim=st.sampled_from([10, 64, 80, 96, 128, 256]),
    block_size=st.sampled_from([16, 32]),
    dtype=dtypes,
    seed=seeds,
    window=st.none() | st.integers(1, 160),
    cap=st.sampled_from([None, None, 0.5, 30.0]),
)
@settings(max_examples=25, deadline=None)
def test_drawn_batches(
    sequences: Sequences,
    heads: tuple[int, int],
    head_dim: int,
    block_size: int,
    dtype: torch.dtype,
    seed: int,
    window: int | None,
    cap: float | None,
) -> None:
    Batch(sequences, heads, head_dim, block_size, dtype, seed).check(window, TOLERANCE[dtype], cap)


@pytest.mark.parametrize("window", [None, 50, 200])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("cap", [None, 2.0])
def test_every_loop_is_met(window: int | None, dtype: torch.dtype, cap: float | None) -> None:
    """Whole and partial tiles of context, tiles below and on the diagonal."""
    Batch([(150, 140)], (2, 1), 64, 16, dtype, 7).check(window, TOLERANCE[dtype], cap)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_float8_cache(dtype: torch.dtype) -> None:
    Batch([(70, 20), (5, 1)], (6, 2), 64, 16, dtype, 5, FLOAT8).check(None, TOLERANCE[dtype])


def test_tiles_are_made_once_for_all_layers() -> None:
    batch = Batch([(40, 30), (0, 5)], (4, 2), 64, 16, torch.float32, 3)
    for _ in range(2):
        attention_prefill(batch.q, batch.k, batch.v, *batch.clean.layer(0), batch.meta, batch.scale, None)
    (tiles,) = batch.meta.tiles.values()
    tokens = tile_shape(64, 4, 2, 90).rows // 2
    assert sorted(tiles.tolist()) == [[0, first] for first in range(0, 30, tokens)] + [[1, 0]]


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("group", [1, 4, 7, 20])
@pytest.mark.parametrize("capability", [80, 90, 100, 120])
def test_a_tile_holds_whole_tokens_of_whole_groups(head_dim: int, group: int, capability: int) -> None:
    for element_bytes in (2, 4):
        shape = tile_shape(head_dim, element_bytes, group, capability)
        assert shape.rows >= 16 and shape.rows // group >= 1 and shape.tile >= 16
