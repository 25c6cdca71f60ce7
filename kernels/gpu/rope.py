"""Rotary position embedding on a GPU, in place, with or without the norm of every head before it (Qwen3's qk_norm).

Twins: `reference.rope`, `reference.norm_rope`. One program turns all query or all key heads of one token: cosines and
sines are loaded once for them, and q and k stay where the qkv product has put them. Bound by memory.
"""

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _turn(
    x_ptr,
    weight_ptr,
    cos_low,
    sin_low,
    cos_high,
    sin_high,
    eps,
    NUM_HEADS: tl.constexpr,
    HEAD_STRIDE: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    NORM: tl.constexpr,
):
    heads = tl.arange(0, BLOCK_HEADS)[:, None]
    columns = tl.arange(0, BLOCK_HALF)
    inside = (heads < NUM_HEADS) & (columns < HALF)[None, :]
    places = x_ptr + heads * HEAD_STRIDE + columns[None, :]
    low = tl.load(places, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(places + HALF, mask=inside, other=0.0).to(tl.float32)
    if NORM:
        scale = tl.rsqrt((tl.sum(low * low, axis=1) + tl.sum(high * high, axis=1)) / (2 * HALF) + eps)[:, None]
        weight_low = tl.load(weight_ptr + columns, mask=columns < HALF, other=0.0).to(tl.float32)
        weight_high = tl.load(weight_ptr + HALF + columns, mask=columns < HALF, other=0.0).to(tl.float32)
        # Rounded as the twin's norm is.
        low = (low * scale * weight_low[None, :]).to(x_ptr.dtype.element_ty).to(tl.float32)
        high = (high * scale * weight_high[None, :]).to(x_ptr.dtype.element_ty).to(tl.float32)
    turned_low = low * cos_low[None, :] - high * sin_low[None, :]
    turned_high = high * cos_high[None, :] + low * sin_high[None, :]
    tl.store(places, turned_low.to(x_ptr.dtype.element_ty), mask=inside)
    tl.store(places + HALF, turned_high.to(x_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _rope_kernel(
    q_ptr,
    k_ptr,
    q_weight_ptr,
    k_weight_ptr,
    cos_ptr,
    sin_ptr,
    q_stride,
    k_stride,
    eps,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    Q_HEAD_STRIDE: tl.constexpr,
    K_HEAD_STRIDE: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    NORM: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK_HALF)
    inside = columns < HALF
    angles = token * (2 * HALF) + columns
    cos_low = tl.load(cos_ptr + angles, mask=inside, other=0.0).to(tl.float32)
    sin_low = tl.load(sin_ptr + angles, mask=inside, other=0.0).to(tl.float32)
    cos_high = tl.load(cos_ptr + angles + HALF, mask=inside, other=0.0).to(tl.float32)
    sin_high = tl.load(sin_ptr + angles + HALF, mask=inside, other=0.0).to(tl.float32)
    if tl.program_id(1) == 0:
        _turn(
            q_ptr + token * q_stride,
            q_weight_ptr,
            cos_low,
            sin_low,
            cos_high,
            sin_high,
            eps,
            NUM_HEADS,
            Q_HEAD_STRIDE,
            HALF,
            BLOCK_HEADS,
            BLOCK_HALF,
            NORM,
        )
    else:
        _turn(
            k_ptr + token * k_stride,
            k_weight_ptr,
            cos_low,
            sin_low,
            cos_high,
            sin_high,
            eps,
            NUM_KV_HEADS,
            K_HEAD_STRIDE,
            HALF,
            BLOCK_HEADS,
            BLOCK_HALF,
            NORM,
        )


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """`reference.rope`, in place; tokens may lie apart (q and k are cut from one matrix)."""
    _launch(q, k, q, k, 0.0, cos, sin, norm=False)
    return q, k


def norm_rope(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """`reference.norm_rope`, in place."""
    assert q_weight.shape == k_weight.shape == (q.shape[2],)
    _launch(q, k, q_weight, k_weight, eps, cos, sin, norm=True)
    return q, k


def _launch(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float, cos: Tensor, sin: Tensor, norm: bool
) -> None:
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads = k.shape[1]
    assert k.shape == (num_tokens, num_kv_heads, head_dim) and head_dim % 2 == 0
    assert cos.shape == sin.shape == (num_tokens, head_dim) and cos.is_contiguous() and sin.is_contiguous()
    assert q.stride(2) == k.stride(2) == 1, "a head is contiguous"
    if not num_tokens:
        return
    # Key heads get as wide a tile: in one that gives a thread less than 8 elements, loads are 16 bits wide.
    block_heads = triton.next_power_of_2(max(num_heads, num_kv_heads))
    block_half = triton.next_power_of_2(head_dim // 2)
    _rope_kernel[(num_tokens, 2)](
        q,
        k,
        q_weight,
        k_weight,
        cos,
        sin,
        q.stride(0),
        k.stride(0),
        eps,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        Q_HEAD_STRIDE=q.stride(1),
        K_HEAD_STRIDE=k.stride(1),
        HALF=head_dim // 2,
        BLOCK_HEADS=block_heads,
        BLOCK_HALF=block_half,
        NORM=norm,
        num_warps=min(8, max(1, block_heads * block_half // 256)),
    )
