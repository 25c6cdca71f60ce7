"""A grammar's bits on the logits on a GPU. Twin: `kernels/logits_bitmask.py`.

Reads an eighth of a byte per id and writes only what is forbidden; logits are not read.
"""

import triton
import triton.language as tl
from torch import Tensor

_WORDS = 32  # of 32 ids each, per program


@triton.jit
def _logits_bitmask_kernel(
    logits_ptr,
    bitmask_ptr,
    rows_ptr,
    logits_stride,
    bitmask_stride,
    vocab_size,
    HAS_ROWS: tl.constexpr,
    WORDS: tl.constexpr,
):
    mask_row = tl.program_id(0).to(tl.int64)
    row = tl.load(rows_ptr + mask_row).to(tl.int64) if HAS_ROWS else mask_row
    words = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    bits = tl.load(bitmask_ptr + mask_row * bitmask_stride + words, mask=words * 32 < vocab_size, other=-1)
    ids = words[:, None] * 32 + tl.arange(0, 32)[None, :]
    is_allowed = (bits[:, None] >> tl.arange(0, 32)[None, :]) & 1
    forbidden = tl.full([WORDS, 32], float("-inf"), tl.float32).to(logits_ptr.dtype.element_ty)
    tl.store(logits_ptr + row * logits_stride + ids, forbidden, mask=(is_allowed == 0) & (ids < vocab_size))


def logits_bitmask(logits: Tensor, bitmask: Tensor, rows: Tensor | None = None) -> None:
    """The twin's; rows of logits and of the bitmask may lie apart."""
    vocab_size = logits.shape[1]
    assert logits.stride(1) == bitmask.stride(1) == 1 and bitmask.shape[1] * 32 >= vocab_size
    num_masks = len(bitmask)
    assert len(logits if rows is None else rows) == num_masks
    if not num_masks:
        return
    _logits_bitmask_kernel[(num_masks, triton.cdiv(vocab_size, 32 * _WORDS))](
        logits,
        bitmask,
        bitmask if rows is None else rows,
        logits.stride(0),
        bitmask.stride(0),
        vocab_size,
        HAS_ROWS=rows is not None,
        WORDS=_WORDS,
        num_warps=4,
    )
