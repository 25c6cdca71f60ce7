"""The ops table of CUDA devices: our Triton kernels, and torch's own products, which are cuBLAS."""

import torch

from kernels import reference
from kernels.gpu.attention_decode import attention_decode
from kernels.gpu.attention_prefill import attention_prefill
from kernels.gpu.kv_write import kv_write
from kernels.gpu.rms_norm import add_rms_norm, rms_norm
from kernels.gpu.rope import norm_rope, rope
from kernels.gpu.silu_mul import silu_mul
from kernels.ops import Ops


def gpu_ops() -> Ops:
    """One table for float32, float16 and bfloat16. Kernels are compiled at their first launch."""
    return Ops(
        pack_linear=torch.Tensor.contiguous,
        linear=reference.linear,
        rms_norm=rms_norm,
        add_rms_norm=add_rms_norm,
        rope=rope,
        norm_rope=norm_rope,
        silu_mul=silu_mul,
        kv_write=kv_write,
        attention_prefill=attention_prefill,
        attention_decode=attention_decode,
        needs_clean_tails=False,
    )
