"""New keys and values into the paged cache on a GPU. Twin: `reference.kv_write`.

One program per token writes all its KV heads. A slot of -1 is skipped: the rows that pad a CUDA graph's batch have no
place. A float8 (e4m3) cache takes values rounded to nearest and cut at +-448, without a scale: keys and values of
trained models stay far below, and a token's values mostly differ in sign and mantissa, not in range.
"""

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _to_cache(x, IS_FLOAT8: tl.constexpr, dtype: tl.constexpr):
    if IS_FLOAT8:
        # A comparison with NaN is false, so a NaN stays one.
        x = x.to(tl.float32)
        x = tl.where(x > 448.0, 448.0, x)
        x = tl.where(x < -448.0, -448.0, x)
    return x.to(dtype)


@triton.jit
def _kv_write_kernel(
    k_ptr,
    v_ptr,
    key_cache_ptr,
    value_cache_ptr,
    slot_mapping_ptr,
    k_stride,
    v_stride,
    block_stride,
    NUM_KV_HEADS: tl.constexpr,
    K_HEAD_STRIDE: tl.constexpr,
    V_HEAD_STRIDE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    IS_FLOAT8: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_mapping_ptr + token)
    if slot >= 0:
        heads = tl.arange(0, BLOCK_HEADS)[:, None]
        columns = tl.arange(0, BLOCK_DIM)[None, :]
        inside = (heads < NUM_KV_HEADS) & (columns < HEAD_DIM)
        k = tl.load(k_ptr + token * k_stride + heads * K_HEAD_STRIDE + columns, mask=inside)
        v = tl.load(v_ptr + token * v_stride + heads * V_HEAD_STRIDE + columns, mask=inside)
        # What is a multiple of the block's stride and of whole rows lets the store be 128 bits wide.
        first = (slot // BLOCK_SIZE) * block_stride + (slot % BLOCK_SIZE) * HEAD_DIM
        places = first + heads * (BLOCK_SIZE * HEAD_DIM) + columns
        tl.store(key_cache_ptr + places, _to_cache(k, IS_FLOAT8, key_cache_ptr.dtype.element_ty), mask=inside)
        tl.store(value_cache_ptr + places, _to_cache(v, IS_FLOAT8, value_cache_ptr.dtype.element_ty), mask=inside)


def kv_write(k: Tensor, v: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor) -> None:
    """`reference.kv_write`; tokens may lie apart, slots of -1 are skipped."""
    num_tokens, num_kv_heads, head_dim = k.shape
    block_size = key_cache.shape[2]
    assert v.shape == k.shape and k.stride(2) == v.stride(2) == 1, "a head is contiguous"
    assert key_cache.shape[1:] == (num_kv_heads, block_size, head_dim) == value_cache.shape[1:]
    assert key_cache.stride() == value_cache.stride() and key_cache[0].is_contiguous()
    assert slot_mapping.shape == (num_tokens,) and slot_mapping.is_contiguous()
    if not num_tokens:
        return
    block_heads, block_dim = triton.next_power_of_2(num_kv_heads), triton.next_power_of_2(head_dim)
    _kv_write_kernel[(num_tokens,)](
        k,
        v,
        key_cache,
        value_cache,
        slot_mapping,
        k.stride(0),
        v.stride(0),
        key_cache.stride(0),
        NUM_KV_HEADS=num_kv_heads,
        K_HEAD_STRIDE=k.stride(1),
        V_HEAD_STRIDE=v.stride(1),
        BLOCK_SIZE=block_size,
        HEAD_DIM=head_dim,
        BLOCK_HEADS=block_heads,
        BLOCK_DIM=block_dim,
        IS_FLOAT8=key_cache.element_size() == 1,
        num_warps=min(8, max(1, block_heads * block_dim // 256)),
    )
