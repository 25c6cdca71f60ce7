"""Causal attention of packed new tokens over their cached context on a GPU. Twin: `reference.attention_prefill`.

One program takes a tile of one sequence's new tokens with all query heads that share a KV head: (token, head) pairs are
the rows of its tensor-core products, so that keys and values are read once for them (FlashAttention-2, Dao 2023). It
goes over the context, block by block out of the cache, and then over the new tokens up to its own, which it reads from
k and v: at full precision where the cache is float8. Only tiles on an edge (the end of the context, the diagonal, a
window's begin) pay for a mask.

The launch has exactly the tiles that exist; their list is made on the host, once for all layers of a pass. Bound by
arithmetic: 4 * head_dim * (context + new / 2) FLOPs per new token and query head.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.target import capability
from kernels.reference import PrefillMeta

_LOG2_E = 1.4426950408889634


@triton.jit
def _attend(q, keys, values, visible, largest, total, summed, scale, cap, MASKED: tl.constexpr, HAS_CAP: tl.constexpr):
    """One turn of the online softmax."""
    scores = tl.dot(q, tl.trans(keys), input_precision="ieee") * scale
    if HAS_CAP:
        scores = cap * (2.0 / (1.0 + tl.exp(-2.0 * scores)) - 1.0)  # tanh, of scores / cap
    if MASKED:
        scores = tl.where(visible, scores, -1e30)
    new_largest = tl.maximum(largest, tl.max(scores, axis=1))
    weights = tl.exp2(scores - new_largest[:, None])
    if MASKED:
        weights = tl.where(visible, weights, 0.0)
    faded = tl.exp2(largest - new_largest)
    total = total * faded + tl.sum(weights, axis=1)
    summed = tl.dot(weights.to(q.dtype), values, summed * faded[:, None], input_precision="ieee")
    return new_largest, total, summed


@triton.jit
def _attention_prefill_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    key_cache_ptr,
    value_cache_ptr,
    out_ptr,
    tiles_ptr,
    cu_seqlens_q_ptr,
    context_lens_ptr,
    block_tables_ptr,
    q_stride,
    k_stride,
    v_stride,
    block_stride,
    table_stride,
    scale,
    cap,
    window,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    Q_HEAD_STRIDE: tl.constexpr,
    K_HEAD_STRIDE: tl.constexpr,
    V_HEAD_STRIDE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    TILE: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_CAP: tl.constexpr,
    STAGES: tl.constexpr,
):
    sequence = tl.load(tiles_ptr + 2 * tl.program_id(0)).to(tl.int64)
    first = tl.load(tiles_ptr + 2 * tl.program_id(0) + 1)
    kv_head = tl.program_id(1)
    GROUP: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    TILE_TOKENS: tl.constexpr = BLOCK_ROWS // GROUP
    start = tl.load(cu_seqlens_q_ptr + sequence)
    num_new = tl.load(cu_seqlens_q_ptr + sequence + 1) - start
    context_len = tl.load(context_lens_ptr + sequence)

    rows = tl.arange(0, BLOCK_ROWS)
    columns = tl.arange(0, BLOCK_DIM)
    tokens = first + rows // GROUP  # within the new ones
    heads = kv_head * GROUP + rows % GROUP
    is_row = (rows < TILE_TOKENS * GROUP) & (tokens < num_new)
    is_column = columns < HEAD_DIM
    is_q = is_row[:, None] & is_column[None, :]
    q_rows = (start + tokens).to(tl.int64)
    q = tl.load(
        q_ptr + q_rows[:, None] * q_stride + heads[:, None] * Q_HEAD_STRIDE + columns[None, :], mask=is_q, other=0.0
    )

    largest = tl.full([BLOCK_ROWS], -1e30, tl.float32)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    summed = tl.zeros([BLOCK_ROWS, BLOCK_DIM], tl.float32)

    # The cached context, whole tiles and then what is left of it. No new token is before any of it.
    table = block_tables_ptr + sequence * table_stride
    of_head = kv_head * (BLOCK_SIZE * HEAD_DIM)
    seen_from = tl.maximum(context_len + first - window + 1, 0) if HAS_WINDOW else 0
    whole = tl.maximum(context_len // TILE, seen_from // TILE)
    for tile in tl.range(seen_from // TILE, whole, num_stages=STAGES):
        places = tile * TILE + tl.arange(0, TILE)
        block_ids = tl.load(table + places // BLOCK_SIZE).to(tl.int64)
        cached = block_ids * block_stride + of_head + (places % BLOCK_SIZE) * HEAD_DIM
        keys = tl.load(key_cache_ptr + cached[:, None] + columns[None, :], mask=is_column[None, :], other=0.0)
        values = tl.load(value_cache_ptr + cached[:, None] + columns[None, :], mask=is_column[None, :], other=0.0)
        visible = (context_len + tokens)[:, None] - places[None, :] < window
        largest, total, summed = _attend(
            q, keys.to(q.dtype), values.to(q.dtype), visible, largest, total, summed, scale, cap, HAS_WINDOW, HAS_CAP
        )
    for tile in tl.range(whole, tl.cdiv(context_len, TILE), num_stages=1):
        places = tile * TILE + tl.arange(0, TILE)
        is_place = places < context_len
        block_ids = tl.load(table + places // BLOCK_SIZE, mask=is_place, other=0).to(tl.int64)
        cached = block_ids * block_stride + of_head + (places % BLOCK_SIZE) * HEAD_DIM
        is_element = is_place[:, None] & is_column[None, :]
        keys = tl.load(key_cache_ptr + cached[:, None] + columns[None, :], mask=is_element, other=0.0)
        values = tl.load(value_cache_ptr + cached[:, None] + columns[None, :], mask=is_element, other=0.0)
        visible = is_place[None, :] & is_row[:, None]
        if HAS_WINDOW:
            visible = visible & ((context_len + tokens)[:, None] - places[None, :] < window)
        largest, total, summed = _attend(
            q, keys.to(q.dtype), values.to(q.dtype), visible, largest, total, summed, scale, cap, True, HAS_CAP
        )

    # The new tokens before this tile's, then those around the diagonal.
    k_head = k_ptr + start.to(tl.int64) * k_stride + kv_head * K_HEAD_STRIDE
    v_head = v_ptr + start.to(tl.int64) * v_stride + kv_head * V_HEAD_STRIDE
    new_from = tl.maximum(first - window + 1, 0) if HAS_WINDOW else 0
    diagonal = first // TILE
    for tile in tl.range(new_from // TILE, diagonal, num_stages=STAGES):
        places = tile * TILE + tl.arange(0, TILE)
        of_places = places.to(tl.int64)[:, None]
        keys = tl.load(k_head + of_places * k_stride + columns[None, :], mask=is_column[None, :], other=0.0)
        values = tl.load(v_head + of_places * v_stride + columns[None, :], mask=is_column[None, :], other=0.0)
        visible = tokens[:, None] - places[None, :] < window
        largest, total, summed = _attend(
            q, keys, values, visible, largest, total, summed, scale, cap, HAS_WINDOW, HAS_CAP
        )
    end = tl.minimum(first + TILE_TOKENS, num_new)
    for tile in tl.range(diagonal, tl.cdiv(end, TILE), num_stages=1):
        places = tile * TILE + tl.arange(0, TILE)
        of_places = places.to(tl.int64)[:, None]
        is_element = (places < num_new)[:, None] & is_column[None, :]
        keys = tl.load(k_head + of_places * k_stride + columns[None, :], mask=is_element, other=0.0)
        values = tl.load(v_head + of_places * v_stride + columns[None, :], mask=is_element, other=0.0)
        visible = (places[None, :] <= tokens[:, None]) & is_row[:, None]
        if HAS_WINDOW:
            visible = visible & (tokens[:, None] - places[None, :] < window)
        largest, total, summed = _attend(q, keys, values, visible, largest, total, summed, scale, cap, True, HAS_CAP)

    out = summed / tl.where(total > 0.0, total, 1.0)[:, None]
    out_rows = q_rows[:, None] * (NUM_HEADS * HEAD_DIM) + heads[:, None] * HEAD_DIM + columns[None, :]
    tl.store(out_ptr + out_rows, out.to(out_ptr.dtype.element_ty), mask=is_q)


def attention_prefill(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    meta: PrefillMeta,
    scale: float,
    sliding_window: int | None,
    cap: float | None = None,
) -> Tensor:
    """`reference.attention_prefill`; the cache may be float8 (e4m3)."""
    num_tokens, num_heads, head_dim = q.shape
    _, num_kv_heads, block_size, _ = key_cache.shape
    assert k.shape == v.shape == (num_tokens, num_kv_heads, head_dim) and num_heads % num_kv_heads == 0
    assert q.stride(2) == k.stride(2) == v.stride(2) == 1, "a head is contiguous"
    assert key_cache.stride() == value_cache.stride() and key_cache[0].is_contiguous()
    out = torch.empty((num_tokens, num_heads, head_dim), dtype=q.dtype, device=q.device)
    group = num_heads // num_kv_heads
    shape = tile_shape(head_dim, q.element_size(), group, capability(q.device))
    tiles = _tiles(meta, shape.rows // group, q.device)
    if not len(tiles):
        return out
    _attention_prefill_kernel[(len(tiles), num_kv_heads)](
        q,
        k,
        v,
        key_cache,
        value_cache,
        out,
        tiles,
        meta.cu_seqlens_q_device,
        meta.context_lens_device,
        meta.block_tables,
        q.stride(0),
        k.stride(0),
        v.stride(0),
        key_cache.stride(0),
        meta.block_tables.stride(0),
        scale * _LOG2_E if cap is None else scale / cap,
        0.0 if cap is None else cap * _LOG2_E,
        sliding_window or 0,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        Q_HEAD_STRIDE=q.stride(1),
        K_HEAD_STRIDE=k.stride(1),
        V_HEAD_STRIDE=v.stride(1),
        BLOCK_SIZE=block_size,
        HEAD_DIM=head_dim,
        BLOCK_DIM=triton.next_power_of_2(head_dim),
        BLOCK_ROWS=shape.rows,
        TILE=shape.tile,
        HAS_WINDOW=sliding_window is not None,
        HAS_CAP=cap is not None,
        STAGES=shape.stages,
        num_warps=shape.num_warps,
    )
    return out


@dataclass(frozen=True, slots=True)
class TileShape:
    """How much one program takes at once."""

    rows: int  # (token, head) pairs
    tile: int  # keys per turn
    stages: int
    num_warps: int


def tile_shape(head_dim: int, element_bytes: int, group: int, capability: int) -> TileShape:
    """The largest that keeps sums in registers and keys in the 99 KiB of shared memory that every target has."""
    group_rows = triton.next_power_of_2(group)
    if element_bytes == 4:
        # Float32 has no tensor cores here and is for comparisons.
        return TileShape(max(16, group_rows), 16 if head_dim > 128 else 32, 1, 4)
    if head_dim > 128:
        return TileShape(max(64, group_rows), 32, 2, 8)
    # Where products take their operands from shared memory (wgmma, tcgen05) registers are left for more rows; elsewhere
    # 128 rows of 128 spilled.
    has_shared_operands = capability // 10 in (9, 10)
    return TileShape(max(128 if head_dim <= 64 or has_shared_operands else 64, group_rows), 64, 2, 8)


def _tiles(meta: PrefillMeta, tile_tokens: int, device: torch.device) -> Tensor:
    """int32 [num_tiles, 2]: sequence and first of its new tokens; long sequences' last tiles, the slowest, first."""
    tiles = meta.tiles.get(tile_tokens)
    if tiles is None:
        ends = zip(meta.cu_seqlens_q, meta.cu_seqlens_q[1:], strict=False)
        pairs = [
            (sequence, first)
            for sequence, (start, end) in enumerate(ends)
            for first in range(0, end - start, tile_tokens)
        ]
        pairs.sort(key=lambda pair: -(meta.context_lens[pair[0]] + pair[1]))
        tiles = meta.tiles[tile_tokens] = torch.tensor(pairs, dtype=torch.int32, device=device).view(-1, 2)
    return tiles
