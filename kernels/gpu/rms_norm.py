"""RMS norm on a GPU, alone or with the residual's addition: one program per row, the row in registers.

Twins: `reference.rms_norm`, `reference.add_rms_norm`. Arithmetic in float32; the new residual is rounded before it is
normed, as the twin does. Bound by memory: the addition fused saves a third of the traffic of the two apart.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _rms_norm_kernel(
    x_ptr,
    weight_ptr,
    out_ptr,
    x_row_stride,
    x_head_stride,
    num_heads,
    size,
    eps,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < size
    first = (row // num_heads).to(tl.int64) * x_row_stride + (row % num_heads) * x_head_stride
    x = tl.load(x_ptr + first + columns, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, axis=0) / size + eps)
    out = (x * scale * weight).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row.to(tl.int64) * size + columns, out, mask=inside)


@triton.jit
def _add_rms_norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    out_ptr,
    x_row_stride,
    residual_row_stride,
    size,
    eps,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < size
    x = tl.load(x_ptr + row * x_row_stride + columns, mask=inside, other=0.0).to(tl.float32)
    residual_row = residual_ptr + row * residual_row_stride
    residual = tl.load(residual_row + columns, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    rounded = (residual + x).to(residual_ptr.dtype.element_ty)
    tl.store(residual_row + columns, rounded, mask=inside)
    summed = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(summed * summed, axis=0) / size + eps)
    out = (summed * scale * weight).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * size + columns, out, mask=inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`reference.rms_norm` of [rows, size] or [rows, heads, size]; rows and heads may be strided."""
    assert x.dim() in (2, 3) and x.stride(-1) == 1, "a row is contiguous"
    size = x.shape[-1]
    assert weight.shape == (size,) and weight.is_contiguous()
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    num_heads, head_stride = (1, 0) if x.dim() == 2 else (x.shape[1], x.stride(1))
    num_rows = x.shape[0] * num_heads
    if num_rows:
        block = triton.next_power_of_2(size)
        _rms_norm_kernel[(num_rows,)](
            x, weight, out, x.stride(0), head_stride, num_heads, size, eps, BLOCK=block, num_warps=_num_warps(block)
        )
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`reference.add_rms_norm`; the sum lies where `residual` lay."""
    num_rows, size = x.shape
    assert x.shape == residual.shape and x.stride(1) == residual.stride(1) == 1, "a row is contiguous"
    assert x.dtype == residual.dtype and weight.shape == (size,) and weight.is_contiguous()
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if num_rows:
        block = triton.next_power_of_2(size)
        _add_rms_norm_kernel[(num_rows,)](
            x,
            residual,
            weight,
            out,
            x.stride(0),
            residual.stride(0),
            size,
            eps,
            BLOCK=block,
            num_warps=_num_warps(block),
        )
    return out, residual


def _num_warps(block: int) -> int:
    """8 elements, one 128-bit load of 16-bit values, per thread and turn; at most 16 warps."""
    return min(16, max(1, block // 256))
