"""The logits that count: after logit bias, allowed ids, penalties and EOS rules, divided by the temperature.

One kernel divides every logit; a second one goes over the edits, a short list of ids each with what happens to it, and
writes those anew. Arithmetic is float32 without contraction (`enable_fp_fusion=False`), as on the CPU
(`engine/penalties.py`). Bound by memory: 4 bytes read, 4 written.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.sampling_inputs import SamplingInputs

_TILE = 1024  # ids per program
_EDITS_PER_PROGRAM = 128


@triton.jit
def _scale_kernel(
    logits_ptr, scaled_ptr, temperatures_ptr, only_edited_ptr, logits_stride, vocab_size, TILE: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    ids = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = ids < vocab_size
    logits = tl.load(logits_ptr + row * logits_stride + ids, mask=inside, other=0.0).to(tl.float32)
    scaled = tl.div_rn(logits, tl.load(temperatures_ptr + row))
    scaled = tl.where(tl.load(only_edited_ptr + row) != 0, float("-inf"), scaled)
    tl.store(scaled_ptr + row * vocab_size + ids, scaled, mask=inside)


@triton.jit(do_not_specialize=["num_edits"])
def _edit_kernel(
    logits_ptr,
    scaled_ptr,
    temperatures_ptr,
    edit_rows_ptr,
    edit_ids_ptr,
    edits_ptr,
    num_edits,
    logits_stride,
    vocab_size,
    BLOCK: tl.constexpr,
):
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = places < num_edits
    rows = tl.load(edit_rows_ptr + places, mask=inside, other=0).to(tl.int64)
    ids = tl.load(edit_ids_ptr + places, mask=inside, other=0)
    added = tl.load(edits_ptr + places, mask=inside, other=0.0)
    repetition = tl.load(edits_ptr + num_edits + places, mask=inside, other=1.0)
    subtracted = tl.load(edits_ptr + 2 * num_edits + places, mask=inside, other=0.0)
    growth = tl.load(edits_ptr + 3 * num_edits + places, mask=inside, other=0.0)
    ceiling = tl.load(edits_ptr + 4 * num_edits + places, mask=inside, other=0.0)
    x = tl.load(logits_ptr + rows * logits_stride + ids, mask=inside, other=0.0).to(tl.float32) + added
    x = tl.where(x > 0.0, tl.div_rn(x, repetition), x * repetition) - subtracted
    size = tl.abs(x)
    x = x + tl.where(size < float("inf"), size, 0.0) * growth
    x = tl.where(x > ceiling, ceiling, x)  # a NaN stays one
    temperatures = tl.load(temperatures_ptr + rows, mask=inside, other=1.0)
    tl.store(scaled_ptr + rows * vocab_size + ids, tl.div_rn(x, temperatures), mask=inside)


def edit(logits: Tensor, inputs: SamplingInputs) -> Tensor:
    """[B, V] float32: the logits after every edit, divided by the temperature. logits: any float type, not changed."""
    num_rows, vocab_size = logits.shape
    assert logits.stride(1) == 1, "a row is contiguous"
    scaled = torch.empty((num_rows, vocab_size), dtype=torch.float32, device=logits.device)
    if not num_rows:
        return scaled
    _scale_kernel[(num_rows, triton.cdiv(vocab_size, _TILE))](
        logits,
        scaled,
        inputs.temperatures,
        inputs.only_edited,
        logits.stride(0),
        vocab_size,
        TILE=_TILE,
        num_warps=4,
        enable_fp_fusion=False,
    )
    num_edits = len(inputs.edit_rows)
    if num_edits:
        _edit_kernel[(triton.cdiv(num_edits, _EDITS_PER_PROGRAM),)](
            logits,
            scaled,
            inputs.temperatures,
            inputs.edit_rows,
            inputs.edit_ids,
            inputs.edits,
            num_edits,
            logits.stride(0),
            vocab_size,
            BLOCK=_EDITS_PER_PROGRAM,
            num_warps=4,
            enable_fp_fusion=False,
        )
    return scaled
