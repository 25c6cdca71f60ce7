"""silu(gate) * up on a GPU. Twin: `reference.silu_mul`. Arithmetic in float32; bound by memory."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


@triton.jit
def _silu_mul_kernel(gate_up_ptr, out_ptr, row_stride, size, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < size
    gate = tl.load(gate_up_ptr + row * row_stride + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * row_stride + size + columns, mask=inside, other=0.0).to(tl.float32)
    # Rounded between, as the twin does.
    activated = (gate / (1.0 + tl.exp(-gate))).to(out_ptr.dtype.element_ty).to(tl.float32)
    tl.store(out_ptr + row * size + columns, (activated * up).to(out_ptr.dtype.element_ty), mask=inside)


def silu_mul(gate_up: Tensor) -> Tensor:
    """`reference.silu_mul`; rows may lie apart."""
    rows, doubled = gate_up.shape
    assert gate_up.stride(1) == 1 and doubled % 2 == 0
    size = doubled // 2
    out = torch.empty((rows, size), dtype=gate_up.dtype, device=gate_up.device)
    if rows:
        # Rows are the first grid axis: it alone may exceed 65535.
        grid = (rows, triton.cdiv(size, _BLOCK))
        _silu_mul_kernel[grid](gate_up, out, gate_up.stride(0), size, BLOCK=_BLOCK, num_warps=4)
    return out
