"""The cap on attention scores (Gemma 2), for both attention kernels: c * tanh(scores / c), in the base of exp2."""

import triton
import triton.language as tl

LOG2_E = 1.4426950408889634


@triton.jit
def capped(scores, cap):
    """scores: already divided by c; cap: c * log2(e). tanh(x) = 2 / (1 + exp(-2 x)) - 1, which overflows to +-1."""
    return cap * (2.0 / (1.0 + tl.exp(-2.0 * scores)) - 1.0)
