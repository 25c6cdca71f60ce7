"""The ops table: the few tensor operations that the model is made of, chosen once per device and dtype.

The model calls nothing else that is worth a kernel, so a Triton or C++ implementation replaces an entry here and no
line of the model. `kernels/reference.py` holds the plain twins that every other implementation is compared with.
Knows no model, no sequence and no scheduler.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import packed_linear, reference
from kernels.packed_linear import Linear, LinearWeight, Pack
from kernels.reference import PrefillMeta

__all__ = ["LinearWeight", "Ops", "PrefillMeta", "select_ops"]


@dataclass(frozen=True, slots=True)
class Ops:
    """One implementation of each operation. Shapes and formulas: the twins in `kernels/reference.py`."""

    # weight [out, in] -> whatever `linear` of this table takes as its weight; the model stores only that.
    pack_linear: Pack
    linear: Linear
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    rope: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    silu_mul: Callable[[Tensor], Tensor]
    kv_write: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None]
    attention_prefill: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, PrefillMeta, float, int | None], Tensor]
    attention_decode: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, float, int | None], Tensor]


def select_ops(device: torch.device, dtype: torch.dtype) -> Ops:
    """The fastest table there is for tensors of `dtype` on `device`."""
    pack, linear = packed_linear.select_linear(device, dtype)
    return Ops(
        pack_linear=pack,
        linear=linear,
        rms_norm=reference.rms_norm,
        rope=reference.rope,
        silu_mul=reference.silu_mul,
        kv_write=reference.kv_write,
        attention_prefill=reference.attention_prefill,
        attention_decode=reference.attention_decode,
    )
