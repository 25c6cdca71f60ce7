"""Linears of few tokens on a GPU: their inputs are split over programs, whose partial sums are added here.

A weight is read at full bandwidth only if every multiprocessor reads. The number of splits depends on shapes alone, so
that a CUDA graph may hold the launch, and sums are taken in one order, so that a result is the same every time. Twin:
the sum in torch.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 512
_MAX_SPLITS = 16
_MIN_TURNS = 2  # of a program's loop


@triton.jit(do_not_specialize=["num_elements"])
def _sum_splits_kernel(
    partial_ptr,
    bias_ptr,
    out_ptr,
    num_elements,
    num_outputs,
    HAS_BIAS: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < num_outputs
    total = tl.zeros([BLOCK], tl.float32)
    for split in tl.static_range(SPLITS):
        total += tl.load(partial_ptr + split * num_elements + row * num_outputs + columns, mask=inside, other=0.0)
    if HAS_BIAS:
        total += tl.load(bias_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * num_outputs + columns, total.to(out_ptr.dtype.element_ty), mask=inside)


def sum_splits(partial: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """partial: float32 [splits, tokens, out], bias: [out] -> [tokens, out] of `dtype`"""
    num_splits, num_tokens, num_outputs = partial.shape
    assert partial.is_contiguous() and (bias is None or bias.is_contiguous())
    out = torch.empty((num_tokens, num_outputs), dtype=dtype, device=partial.device)
    _sum_splits_kernel[(num_tokens, triton.cdiv(num_outputs, _BLOCK))](
        partial,
        partial if bias is None else bias,
        out,
        num_tokens * num_outputs,
        num_outputs,
        HAS_BIAS=bias is not None,
        SPLITS=num_splits,
        BLOCK=_BLOCK,
        num_warps=4,
    )
    return out


def choose_num_splits(num_programs: int, num_turns: int, num_multiprocessors: int) -> int:
    """A power of 2: enough programs for two per multiprocessor, of at least 2 turns each; 1 to 16."""
    wanted = min(2 * num_multiprocessors // num_programs, num_turns // _MIN_TURNS, _MAX_SPLITS)
    return 1 << max(0, wanted.bit_length() - 1)
