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
from kernels.cpu_linear import FloatLinear, PanelLinear, PanelWeight
from kernels.cpu_ops import SUFFIXES, CpuOps
from kernels.decoder_step import DecoderStep, StepDecoder, takes
from kernels.packed_linear import TwofoldWeight
from kernels.panels import Packer, PanelMatrix
from kernels.quantized_linear import QuantizedWeight
from kernels.reference import PrefillMeta

LinearWeight = Tensor | TwofoldWeight | PanelWeight | PanelMatrix | QuantizedWeight
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
    attention_prefill: Callable[
        [Tensor, Tensor, Tensor, Tensor, Tensor, PrefillMeta, float, int | None, float | None], Tensor
    ]
    attention_decode: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, float, int | None, float | None], Tensor]
    # A whole decoder's steps as one call each, where there is that; weights of other kinds than panels go without.
    whole_step: Callable[[StepDecoder], DecoderStep | None] | None = None
    # Whether attention multiplies what lies beyond a sequence's end in its last block, so that it must be finite there.
    needs_clean_tails: bool = True
    # Whether `linear` takes the weights of `kernels/quantized_linear.py` too; elsewhere they are dequantized at load.
    takes_quantized: bool = False
    # What `pack_linear` makes, by name: where names are equal, so are the bytes, and others may map them from a file.
    # Empty: they mean nothing outside this process.
    weights_layout: str = ""
    # What packs weights of 8 and 4 bits that `linear` takes too, where it does.
    packer: Packer | None = None


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
    linears = FloatLinear(library) if dtype == torch.float32 else PanelLinear(library)

    def whole_step(decoder: StepDecoder) -> DecoderStep | None:
        return DecoderStep(library, decoder) if takes(decoder) else None

    return Ops(
        pack_linear=linears.pack,
        linear=linears.linear,
        whole_step=whole_step,
        rms_norm=kernels.rms_norm,
        add_rms_norm=kernels.add_rms_norm,
        rope=kernels.rope,
        norm_rope=kernels.norm_rope,
        silu_mul=kernels.silu_mul,
        kv_write=kernels.kv_write,
        attention_prefill=kernels.attention_prefill,
        attention_decode=kernels.attention_decode,
        packer=linears.packer if isinstance(linears, PanelLinear) else None,
        # Any change of the sources may change what panels are.
        weights_layout=f"panels {cpu_build.source_key()}",
    )
