"""Attention of one new token per sequence over its paged cache on a GPU. Twin: `reference.attention_decode`.

One program takes one sequence, one KV head with all query heads that share it, and one share ("split") of the cached
tokens; the query heads, filled up to 16, are the rows of a tensor-core product, so that keys and values are read once.
Several splits leave partial sums with their log-sum-exp, which a second kernel merges (Flash-Decoding, Dao et al.
2023). The number of splits depends on shapes alone, never on lengths, so that a CUDA graph may hold the launch; a split
that a short sequence does not reach ends at once.

Bound by memory: 2 * seq_len * head_dim elements per sequence and KV head, e.g. 4 KiB per token for Llama 3 8B in bf16,
which is 20 us for 16 sequences of 1000 tokens on an H100.

What lies in a block beyond the sequence's end, or before its window, is not read: it may be anything, NaN included. A
sequence of length 0 (a row that pads a graph's batch) reads nothing and gives zeros.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.target import num_multiprocessors

_LOG2_E = 1.4426950408889634
_MIN_ROWS = 16  # of a tensor-core product
_MAX_SPLITS = 32
# Turns of the loop under way: block ids of the one after next, keys and values of the next. More took no more buffers.
_STAGES = 3


@triton.jit
def _attention_decode_kernel(
    q_ptr,
    key_cache_ptr,
    value_cache_ptr,
    block_tables_ptr,
    seq_lens_ptr,
    out_ptr,
    partial_ptr,
    lse_ptr,
    q_stride,
    block_stride,
    table_stride,
    scale,
    cap,
    window,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    Q_HEAD_STRIDE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    TILE: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_CAP: tl.constexpr,
    STAGES: tl.constexpr,
):
    sequence = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    GROUP: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    seq_len = tl.load(seq_lens_ptr + sequence)
    first = tl.maximum(seq_len - window, 0) if HAS_WINDOW else 0
    first_tile = first // TILE
    end_tile = tl.cdiv(seq_len, TILE)
    per_split = tl.cdiv(end_tile - first_tile, NUM_SPLITS)
    begin = first_tile + split * per_split
    end = tl.minimum(begin + per_split, end_tile)

    rows = tl.arange(0, BLOCK_ROWS)
    columns = tl.arange(0, BLOCK_DIM)
    heads = kv_head * GROUP + rows
    is_row = rows < GROUP
    is_column = columns < HEAD_DIM
    is_q = is_row[:, None] & is_column[None, :]
    q = tl.load(q_ptr + sequence * q_stride + heads[:, None] * Q_HEAD_STRIDE + columns[None, :], mask=is_q, other=0.0)

    largest = tl.full([BLOCK_ROWS], -1e30, tl.float32)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    summed = tl.zeros([BLOCK_ROWS, BLOCK_DIM], tl.float32)
    table = block_tables_ptr + sequence * table_stride
    of_head = kv_head * (BLOCK_SIZE * HEAD_DIM)
    for tile in tl.range(begin, end, num_stages=STAGES):
        tokens = tile * TILE + tl.arange(0, TILE)
        is_token = tokens < seq_len
        if HAS_WINDOW:
            is_token = is_token & (tokens >= first)
        block_ids = tl.load(table + tokens // BLOCK_SIZE, mask=is_token, other=0).to(tl.int64)
        places = block_ids * block_stride + of_head + (tokens % BLOCK_SIZE) * HEAD_DIM
        is_element = is_token[:, None] & is_column[None, :]
        keys = tl.load(key_cache_ptr + places[:, None] + columns[None, :], mask=is_element, other=0.0)
        scores = tl.dot(q, tl.trans(keys.to(q.dtype)), input_precision="ieee") * scale
        if HAS_CAP:
            scores = cap * (2.0 / (1.0 + tl.exp(-2.0 * scores)) - 1.0)  # tanh, of scores / cap
        scores = tl.where(is_token[None, :], scores, -1e30)
        new_largest = tl.maximum(largest, tl.max(scores, axis=1))
        faded = tl.exp2(largest - new_largest)
        weights = tl.where(is_token[None, :], tl.exp2(scores - new_largest[:, None]), 0.0)
        values = tl.load(value_cache_ptr + places[:, None] + columns[None, :], mask=is_element, other=0.0)
        total = total * faded + tl.sum(weights, axis=1)
        summed = summed * faded[:, None] + tl.dot(weights.to(q.dtype), values.to(q.dtype), input_precision="ieee")
        largest = new_largest

    seen = tl.where(total > 0.0, total, 1.0)  # where nothing was seen the sums are 0
    mean = summed / seen[:, None]
    row = sequence * NUM_HEADS + heads
    if NUM_SPLITS == 1:
        places = out_ptr + row[:, None] * HEAD_DIM + columns[None, :]
        tl.store(places, mean.to(out_ptr.dtype.element_ty), mask=is_q)
    else:
        row = row * NUM_SPLITS + split
        tl.store(partial_ptr + row[:, None] * HEAD_DIM + columns[None, :], mean, mask=is_q)
        tl.store(lse_ptr + row, tl.where(total > 0.0, largest + tl.log2(seen), -1e30), mask=is_row)


@triton.jit
def _merge_splits_kernel(
    partial_ptr,
    lse_ptr,
    out_ptr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    splits = tl.arange(0, NUM_SPLITS)
    columns = tl.arange(0, BLOCK_DIM)
    is_column = columns < HEAD_DIM
    lse = tl.load(lse_ptr + row * NUM_SPLITS + splits)
    weights = tl.where(lse > -1e29, tl.exp2(lse - tl.max(lse, axis=0)), 0.0)
    places = (row * NUM_SPLITS + splits)[:, None] * HEAD_DIM + columns[None, :]
    partial = tl.load(partial_ptr + places, mask=is_column[None, :], other=0.0)
    total = tl.sum(weights, axis=0)
    out = tl.sum(partial * weights[:, None], axis=0) / tl.where(total > 0.0, total, 1.0)
    tl.store(out_ptr + row * HEAD_DIM + columns, out.to(out_ptr.dtype.element_ty), mask=is_column)


def attention_decode(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    scale: float,
    sliding_window: int | None,
    cap: float | None = None,
    num_splits: int | None = None,
) -> Tensor:
    """`reference.attention_decode`; the cache may be float8 (e4m3). `num_splits` (a power of 2) is for tests."""
    num_seqs, num_heads, head_dim = q.shape
    _, num_kv_heads, block_size, _ = key_cache.shape
    assert q.stride(2) == 1 and num_heads % num_kv_heads == 0 and key_cache.shape[3] == head_dim
    assert key_cache.stride() == value_cache.stride() and key_cache[0].is_contiguous()
    assert block_tables.shape[0] == num_seqs == seq_lens.shape[0] and block_tables.stride(1) == 1
    out = torch.empty((num_seqs, num_heads, head_dim), dtype=q.dtype, device=q.device)
    if not num_seqs:
        return out
    tile = tile_of(head_dim, q.element_size(), block_size)
    if num_splits is None:
        max_tokens = block_tables.shape[1] * block_size
        num_splits = choose_num_splits(num_seqs * num_kv_heads, max_tokens // tile, num_multiprocessors(q.device))
    partial, lse = out, out
    if num_splits > 1:
        partial = torch.empty((num_seqs, num_heads, num_splits, head_dim), dtype=torch.float32, device=q.device)
        lse = torch.empty((num_seqs, num_heads, num_splits), dtype=torch.float32, device=q.device)
    block_dim = triton.next_power_of_2(head_dim)
    _attention_decode_kernel[(num_seqs, num_kv_heads, num_splits)](
        q,
        key_cache,
        value_cache,
        block_tables,
        seq_lens,
        out,
        partial,
        lse,
        q.stride(0),
        key_cache.stride(0),
        block_tables.stride(0),
        scale * _LOG2_E if cap is None else scale / cap,
        0.0 if cap is None else cap * _LOG2_E,
        sliding_window or 0,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        Q_HEAD_STRIDE=q.stride(1),
        BLOCK_SIZE=block_size,
        HEAD_DIM=head_dim,
        BLOCK_ROWS=max(_MIN_ROWS, triton.next_power_of_2(num_heads // num_kv_heads)),
        BLOCK_DIM=block_dim,
        TILE=tile,
        NUM_SPLITS=num_splits,
        HAS_WINDOW=sliding_window is not None,
        HAS_CAP=cap is not None,
        STAGES=_STAGES,
        num_warps=4,
    )
    if num_splits > 1:
        _merge_splits_kernel[(num_seqs * num_heads,)](
            partial, lse, out, HEAD_DIM=head_dim, BLOCK_DIM=block_dim, NUM_SPLITS=num_splits, num_warps=2
        )
    return out


def tile_of(head_dim: int, element_bytes: int, block_size: int) -> int:
    """Tokens per turn of the loop: their keys and values take 32 KiB of shared memory at most, if a block does."""
    row_bytes = 2 * triton.next_power_of_2(head_dim) * element_bytes
    return max(block_size, min(64, (32 << 10) // int(row_bytes)))


def choose_num_splits(num_programs: int, num_tiles: int, num_multiprocessors: int) -> int:
    """A power of 2: enough programs for two per multiprocessor, of at least 4 tiles each; 1 to 32."""
    wanted = min(2 * num_multiprocessors // num_programs, num_tiles // 4, _MAX_SPLITS)
    return 1 << max(0, wanted.bit_length() - 1)
