"""The ops table of CUDA devices: our Triton kernels, and torch's own products, which are cuBLAS."""

import torch
from torch import Tensor

from kernels import reference
from kernels.gpu.attention_decode import attention_decode
from kernels.gpu.attention_prefill import attention_prefill
from kernels.gpu.fp8_linear import fp8_linear
from kernels.gpu.int4_linear import int4_linear
from kernels.gpu.kv_write import kv_write
from kernels.gpu.rms_norm import add_rms_norm, rms_norm
from kernels.gpu.rope import norm_rope, rope
from kernels.gpu.silu_mul import silu_mul
from kernels.ops import Ops
from kernels.quantized_linear import Fp8Weight, Int4Weight, QuantizedWeight


def gpu_ops() -> Ops:
    """One table for float32, float16 and bfloat16. Kernels are compiled at their first launch."""
    return Ops(
        pack_linear=torch.Tensor.contiguous,
        linear=linear,
        rms_norm=rms_norm,
        add_rms_norm=add_rms_norm,
        rope=rope,
        norm_rope=norm_rope,
        silu_mul=silu_mul,
        kv_write=kv_write,
        attention_prefill=attention_prefill,
        attention_decode=attention_decode,
        needs_clean_tails=False,
        takes_quantized=True,
    )


def linear(x: Tensor, weight: Tensor | QuantizedWeight, bias: Tensor | None) -> Tensor:
    """`reference.linear`, or its like for the kind of weight."""
    match weight:
        case Int4Weight():
            return int4_linear(x, weight, bias)
        case Fp8Weight():
            return fp8_linear(x, weight, bias)
    return reference.linear(x, weight, bias)
