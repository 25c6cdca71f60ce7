"""Linear layers on a CPU without our C++ kernels: weights are laid out once for oneDNN, in a type it multiplies fast.

`F.linear` re-lays a bf16 weight on every call, which costs 1.4x at 1 to 16 rows. Worse, a CPU without AVX512 emulates
bf16 arithmetic, so that its cost grows with every row: all linears of SmolLM2-135M, AMD EPYC with AVX2, 1 thread, ms:

    rows                    1     2     4    16
    bf16 as stored         35    61   118   465      reads 269 MB
    float32, packed        50    56    71   123      reads 538 MB

There the weights are kept both ways: three times the memory, and the better of the two for any number of rows.
The plain twin is `reference.linear`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import reference


@dataclass(frozen=True, slots=True)
class TwofoldWeight:
    """A weight as stored and as multiplied with many rows."""

    plain: Tensor  # [out, in], bf16 or fp16
    packed: Tensor  # float32, oneDNN's layout


LinearWeight = Tensor | TwofoldWeight
Pack = Callable[[Tensor], LinearWeight]
Linear = Callable[[Tensor, LinearWeight, Tensor | None], Tensor]


def select_linear(device: torch.device, dtype: torch.dtype) -> tuple[Pack, Linear]:
    """How weights of `dtype` are stored on `device`, and the linear that takes them so."""
    if device.type != "cpu" or not torch._C._has_mkldnn:
        return _as_is, _plain_linear
    if dtype == torch.float32 or has_bfloat16_units(dtype):
        return _pack, _packed_linear
    return _pack_twofold, _twofold_linear


def has_bfloat16_units(dtype: torch.dtype) -> bool:
    """Whether `dtype` is bfloat16 and this CPU multiplies it natively, through oneDNN."""
    return dtype == torch.bfloat16 and torch._C._has_mkldnn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _as_is(weight: Tensor) -> Tensor:
    return weight.contiguous()


def _plain_linear(x: Tensor, weight: LinearWeight, bias: Tensor | None) -> Tensor:
    assert isinstance(weight, Tensor)
    return reference.linear(x, weight, bias)


def _pack(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
    return packed


def _packed_linear(x: Tensor, weight: LinearWeight, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


def _pack_twofold(weight: Tensor) -> TwofoldWeight:
    # A copy of its own: the given one may be mapped from a file.
    return TwofoldWeight(weight.clone(memory_format=torch.contiguous_format), _pack(weight.float()))


def _twofold_linear(x: Tensor, weight: LinearWeight, bias: Tensor | None) -> Tensor:
    assert isinstance(weight, TwofoldWeight)
    if x.shape[0] == 1:
        return F.linear(x, weight.plain, bias)
    return _packed_linear(x.float(), weight.packed, None if bias is None else bias.float()).to(x.dtype)
