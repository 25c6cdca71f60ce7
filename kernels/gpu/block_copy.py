"""KV blocks from pool to pool on a GPU. Twin: `block_copy` in kernels/.

Bytes move as 64-bit words, two to a load or store of 128 bits, so that one kernel serves every type of cache. One
program moves 8 KiB: 64 bytes under way per thread, and enough programs for every multiprocessor from a few blocks on.
A source may lie on a peer GPU, mapped by CUDA IPC: it is only ever loaded from, and asked nothing but its address.

Bound by memory: 2 * block_bytes per block, e.g. 4 MiB for Llama 3 8B in bf16; from a peer, by half of it on the link.
"""

from math import gcd

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 1024  # words of one program
_WORD = torch.int64
_VECTOR_BYTES = 16
_NUM_WARPS = 4


@triton.jit
def _copy_blocks_kernel(
    source_ptr,
    source_ids_ptr,
    target_ptr,
    target_ids_ptr,
    BLOCK_WORDS: tl.constexpr,
    TILE: tl.constexpr,
):
    TILES: tl.constexpr = (BLOCK_WORDS + TILE - 1) // TILE
    index = tl.program_id(0) // TILES
    words = tl.program_id(0) % TILES * TILE + tl.arange(0, TILE)
    inside = words < BLOCK_WORDS
    source_block = tl.load(source_ids_ptr + index).to(tl.int64)
    target_block = tl.load(target_ids_ptr + index).to(tl.int64)
    moved = tl.load(source_ptr + source_block * BLOCK_WORDS + words, mask=inside)
    tl.store(target_ptr + target_block * BLOCK_WORDS + words, moved, mask=inside)


@triton.jit(do_not_specialize=["num_tokens", "source_head", "target_head"])
def _reshard_blocks_kernel(
    source_ptr,
    source_table_ptr,
    target_ptr,
    target_table_ptr,
    num_tokens,
    source_head,
    target_head,
    NUM_PLANES: tl.constexpr,  # num_layers * 2
    NUM_HEADS: tl.constexpr,
    SOURCE_HEADS: tl.constexpr,
    TARGET_HEADS: tl.constexpr,
    SOURCE_SIZE: tl.constexpr,
    TARGET_SIZE: tl.constexpr,
    UNIT: tl.constexpr,
    ROW_WORDS: tl.constexpr,
    TILE: tl.constexpr,
):
    # A unit is as many tokens as lie in one block on both sides; of one head they are one contiguous run.
    RUN: tl.constexpr = UNIT * ROW_WORDS
    WORDS: tl.constexpr = NUM_PLANES * NUM_HEADS * RUN
    TILES: tl.constexpr = (WORDS + TILE - 1) // TILE
    first = tl.program_id(0) // TILES * UNIT
    words = tl.program_id(0) % TILES * TILE + tl.arange(0, TILE)
    plane = words // (NUM_HEADS * RUN)
    head = words // RUN % NUM_HEADS
    place = words % RUN
    inside = (words < WORDS) & (place < (num_tokens - first) * ROW_WORDS)
    source_block = tl.load(source_table_ptr + first // SOURCE_SIZE).to(tl.int64)
    target_block = tl.load(target_table_ptr + first // TARGET_SIZE).to(tl.int64)
    source_run = (plane * SOURCE_HEADS + source_head + head) * SOURCE_SIZE + first % SOURCE_SIZE
    target_run = (plane * TARGET_HEADS + target_head + head) * TARGET_SIZE + first % TARGET_SIZE
    source_ptr += source_block * (NUM_PLANES * SOURCE_HEADS * SOURCE_SIZE * ROW_WORDS)
    target_ptr += target_block * (NUM_PLANES * TARGET_HEADS * TARGET_SIZE * ROW_WORDS)
    moved = tl.load(source_ptr + source_run * ROW_WORDS + place, mask=inside)
    tl.store(target_ptr + target_run * ROW_WORDS + place, moved, mask=inside)


def copy_blocks(source: Tensor, source_ids: Tensor, target: Tensor, target_ids: Tensor) -> None:
    """`block_copy.copy_blocks`; block_bytes is a multiple of 16."""
    assert source.shape[1:] == target.shape[1:] and source_ids.shape == target_ids.shape
    assert source_ids.is_contiguous() and target_ids.is_contiguous()
    source, target = _as_words(source), _as_words(target)
    if not source_ids.numel():
        return
    block_words = source.shape[1]
    _copy_blocks_kernel[(source_ids.numel() * triton.cdiv(block_words, _TILE),)](
        source,
        source_ids,
        target,
        target_ids,
        BLOCK_WORDS=block_words,
        TILE=_TILE,
        num_warps=_NUM_WARPS,
    )


def reshard_blocks(
    source: Tensor,
    source_table: Tensor,
    target: Tensor,
    target_table: Tensor,
    num_tokens: int,
    *,
    source_head: int,
    target_head: int,
    num_heads: int,
) -> None:
    """`block_copy.reshard_blocks`; a head of one token takes a multiple of 16 bytes."""
    assert (
        source.dtype == target.dtype and source.shape[1:3] == target.shape[1:3] and source.shape[5] == target.shape[5]
    )
    source, target = _as_words(source), _as_words(target)
    _, num_layers, _, source_heads, source_size, row_words = source.shape
    target_heads, target_size = target.shape[3:5]
    assert source_head + num_heads <= source_heads and target_head + num_heads <= target_heads
    assert num_tokens <= min(source_table.numel() * source_size, target_table.numel() * target_size)
    assert source_table.is_contiguous() and target_table.is_contiguous()
    if not num_tokens or not num_heads:
        return
    unit = gcd(source_size, target_size)
    tiles = triton.cdiv(num_layers * 2 * num_heads * unit * row_words, _TILE)
    _reshard_blocks_kernel[(triton.cdiv(num_tokens, unit) * tiles,)](
        source,
        source_table,
        target,
        target_table,
        num_tokens,
        source_head,
        target_head,
        NUM_PLANES=num_layers * 2,
        NUM_HEADS=num_heads,
        SOURCE_HEADS=source_heads,
        TARGET_HEADS=target_heads,
        SOURCE_SIZE=source_size,
        TARGET_SIZE=target_size,
        UNIT=unit,
        ROW_WORDS=row_words,
        TILE=_TILE,
        num_warps=_NUM_WARPS,
    )


def _as_words(pool: Tensor) -> Tensor:
    """The same memory, in which the last dimension is made of 64-bit words."""
    assert pool.is_contiguous() and pool.data_ptr() % _VECTOR_BYTES == 0
    assert pool.shape[-1] * pool.element_size() % _VECTOR_BYTES == 0, "every run begins where a vector may"
    return pool.view(_WORD)
