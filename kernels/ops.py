"""The ops table: the few tensor operations that the model is made of, chosen once per device and dtype.

The model calls nothing else that is worth a kernel, so another implementation replaces an entry here and no
line of the model. `kernels/reference.py` holds the plain twins that every other implementation is compared with.
Knows no model, no sequence and no scheduler.
"""

from collections.abc import Callable
from ctypes import CDLL
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels import cpu_build, packed_linear, reference
from kernels.cpu_ops import SUFFIXES, CpuOps, PanelWeight
from kernels.decoder_step import DecoderStep, PanelDecoder, StepRows, takes
from kernels.packed_linear import TwofoldWeight
from kernels.panels import PanelMatrix
from kernels.quantized_linear import QuantizedWeight
from kernels.reference import PrefillMeta

LinearWeight = Tensor | TwofoldWeight | PanelWeight | PanelMatrix | QuantizedWeight
# rows, cos, sin, pool -> hidden, logits: see `kernels.decoder_step.DecoderStep`
WholeStep = Callable[[StepRows, Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None]]

__all__ = ["LinearWeight", "Ops", "PrefillMeta", "cpu_ops", "plain_ops", "select_ops"]


@dataclass(frozen=True, slots=True)
class Ops:
    """One implementation of each operation. Shapes and formulas: the twins in `kernels/reference.py`."""

    # weight [out, in] -> whatever `linear` of this table takes as its weight; the model stores only that.
    pack_linear: Callable[[Tensor], LinearWeight]
    linear: Callable[[Tensor, Any, Tensor | None], Tensor]
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    add_rms_norm: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]
    rope: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    norm_rope: Callable[[Tensor, Tensor, Tensor, Tensor, float, Tensor, Tensor], tuple[Tensor, Tensor]]
    silu_mul: Callable[[Tensor], Tensor]
    kv_write: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None]
    attention_prefill: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, PrefillMeta, float, int | None], Tensor]
    attention_decode: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, float, int | None], Tensor]
    # A whole decoder's steps as one call each, where there is that; weights of other kinds than panels go without.
    whole_step: Callable[[PanelDecoder], WholeStep | None] | None = None
    # Whether attention multiplies what lies beyond a sequence's end in its last block, so that it must be finite there.
    needs_clean_tails: bool = True
    # Whether `linear` takes the weights of `kernels/quantized_linear.py` too; elsewhere they are dequantized at load.
    takes_quantized: bool = False


def select_ops(device: torch.device, dtype: torch.dtype) -> Ops:
    """The fastest table there is for tensors of `dtype` on `device`."""
    if device.type == "cuda":
        from kernels.gpu.table import gpu_ops  # Triton, half a second, is not loaded where there is no GPU

        return gpu_ops()
    library = cpu_build.load() if device.type == "cpu" and dtype in SUFFIXES else None
    return plain_ops(device, dtype) if library is None else cpu_ops(library, dtype)


def plain_ops(device: torch.device, dtype: torch.dtype) -> Ops:
    """Torch's own operations: any device, any dtype."""
    pack, linear = packed_linear.select_linear(device, dtype)
    return Ops(
        pack_linear=pack,
        linear=linear,
        rms_norm=reference.rms_norm,
        add_rms_norm=reference.add_rms_norm,
        rope=reference.rope,
        norm_rope=reference.norm_rope,
        silu_mul=reference.silu_mul,
        kv_write=reference.kv_write,
        attention_prefill=reference.attention_prefill,
        attention_decode=reference.attention_decode,
    )


def cpu_ops(library: CDLL, dtype: torch.dtype) -> Ops:
    """The C++ kernels of `kernels/cpu/`: float32 or bfloat16 on this machine's CPU."""
    kernels = CpuOps(library, dtype)
    pack: Callable[[Tensor], LinearWeight] = kernels.pack_linear
    linear: Callable[[Tensor, Any, Tensor | None], Tensor] = kernels.linear
    if packed_linear.has_bfloat16_units(dtype):
        # oneDNN uses them (AVX512-BF16, AMX) and our AVX2 linear does not: ten times slower at 512 rows.
        pack, linear = packed_linear.select_linear(torch.device("cpu"), dtype)
    if dtype == torch.bfloat16:
        from kernels import panels
        pack = lambda w: panels.pack(library, w)
    return Ops(
        pack_linear=pack,
        whole_step=lambda decoder: DecoderStep(library, decoder) if takes(decoder) else None,
        linear=linear,
        rms_norm=kernels.rms_norm,
        add_rms_norm=kernels.add_rms_norm,
        rope=kernels.rope,
        norm_rope=kernels.norm_rope,
        silu_mul=kernels.silu_mul,
        kv_write=kernels.kv_write,
        attention_prefill=kernels.attention_prefill,
        attention_decode=kernels.attention_decode,
    )
