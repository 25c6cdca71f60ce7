"""Launchers of the C++ linears: bfloat16 rows with weights in panels (`kernels/panels.py`), and float32.

ctypes lets go of the GIL meanwhile. No result depends on the number of threads or on the other rows of a batch.
"""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.panels import Packer, PanelMatrix

FLOAT_PANEL_OUTPUTS = 16  # as in cpu/linear.cpp

_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_int64


@dataclass(frozen=True, slots=True)
class PanelWeight:
    """A float32 weight in panels of 16 outputs, see cpu/linear.cpp."""

    panels: Tensor  # [ceil(outs / 16), ins, 16]
    outs: int


def native_function(library: ctypes.CDLL, name: str, signature: Sequence[type]) -> Callable[..., None]:
    function = getattr(library, f"pdq_{name}")
    function.argtypes, function.restype = signature, None
    return function  # type: ignore[no-any-return]


class PanelLinear:
    """Linears of bfloat16 rows, with bfloat16, 8-bit or 4-bit weights."""

    dtype = torch.bfloat16

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self._linear = native_function(library, "linear", [_POINTER, _SIZE, *[_POINTER] * 3, _SIZE])
        self.packer = Packer(library)

    def pack(self, weight: Tensor) -> PanelMatrix:
        """weight: [out, in] -> what `linear` takes"""
        return self.packer.pack(weight)

    def linear(self, x: Tensor, weight: PanelMatrix, bias: Tensor | None) -> Tensor:
        """`panels.linear`, rounded"""
        rows, ins = x.shape
        assert x.dtype == torch.bfloat16 and x.stride(1) == 1 and weight.ins == ins
        assert bias is None or (bias.dtype == x.dtype and bias.shape == (weight.outs,) and bias.is_contiguous())
        out = torch.empty(rows, weight.outs, dtype=x.dtype)
        self._linear(
            x.data_ptr(),
            x.stride(0),
            ctypes.addressof(native := weight.native),
            None if bias is None else bias.data_ptr(),
            out.data_ptr(),
            rows,
        )
        del native
        return out


class FloatLinear:
    """Linears of float32."""

    dtype = torch.float32

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        signature = [_POINTER, _SIZE, *[_POINTER] * 3, *[_SIZE] * 3]
        self._linear = native_function(library, "linear_f32", signature)
        self._pack = native_function(library, "linear_pack_f32", [_POINTER, _POINTER, _SIZE, _SIZE])

    def pack(self, weight: Tensor) -> PanelWeight:
        """weight: [out, in] -> what `linear` takes"""
        assert weight.dtype == torch.float32 and weight.device.type == "cpu"
        outs, ins = weight.shape
        weight = weight.contiguous()
        panels = torch.empty(-(-outs // FLOAT_PANEL_OUTPUTS), ins, FLOAT_PANEL_OUTPUTS)
        self._pack(weight.data_ptr(), panels.data_ptr(), ins, outs)
        return PanelWeight(panels, outs)

    def linear(self, x: Tensor, weight: PanelWeight, bias: Tensor | None) -> Tensor:
        """`reference.linear`"""
        rows, ins = x.shape
        outs = weight.outs
        assert x.dtype == torch.float32 and x.stride(1) == 1 and weight.panels.shape[1] == ins
        assert bias is None or (bias.dtype == x.dtype and bias.shape == (outs,) and bias.is_contiguous())
        out = torch.empty(rows, outs)
        self._linear(
            x.data_ptr(),
            x.stride(0),
            weight.panels.data_ptr(),
            None if bias is None else bias.data_ptr(),
            out.data_ptr(),
            rows,
            ins,
            outs,
        )
        return out
