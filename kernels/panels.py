"""Weights in panels of 16 outputs, as the CPU's C++ kernels multiply by them (`kernels/cpu/tiles.h`), and their twins.

    BF16  as they are, 16 bits per weight
    INT8  scale * code, code in -127..127 (-128 is taken too), a float16 scale per 32 inputs: 8.5 bits
    INT4  scale * code + minimum, code in 0..15, float16 scale and minimum per 32 inputs: 5 bits; GGUF's Q4_1 as it is

A product with INT8 or INT4 takes its rows as int8 with a scale per 32 inputs. The twins here compute the same in torch.
Knows no model and no file.
"""

import ctypes
from ctypes import c_int64, c_void_p
from dataclasses import dataclass
from enum import IntEnum

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.panel_memory import PanelMemory

PANEL = 16  # outputs
GROUP = 32  # inputs
SMALLEST = 1e-30  # a group of x whose largest is below is zero


class Kind(IntEnum):
    """As in tiles.h."""

    BF16 = 0
    INT8 = 1
    INT4 = 2


class NativeMatrix(ctypes.Structure):
    """`Matrix` of tiles.h."""

    _fields_ = [("panels", c_void_p), ("kind", c_int64), ("ins", c_int64), ("outs", c_int64)]


_GROUP_BYTES = {Kind.BF16: 1024, Kind.INT8: 544, Kind.INT4: 320}  # of one panel


@dataclass(frozen=True, slots=True)
class PanelMatrix:
    """A weight [outs, ins]. `panels` may be any memory that begins at a multiple of 64, a mapped file's too."""

    panels: Tensor  # uint8 [panel_bytes(kind, ins, outs)]
    kind: Kind
    ins: int
    outs: int

    def __post_init__(self) -> None:
        assert self.panels.dtype == torch.uint8 and self.panels.is_contiguous()
        assert self.panels.numel() == panel_bytes(self.kind, self.ins, self.outs) and self.panels.data_ptr() % 64 == 0

    @property
    def native(self) -> NativeMatrix:
        """For a call into the library; valid while this matrix is."""
        return NativeMatrix(self.panels.data_ptr(), int(self.kind), self.ins, self.outs)


@dataclass(frozen=True, slots=True)
class Codes:
    """An integer weight before it is packed: what a GGUF file holds, or `quantize` makes."""

    codes: Tensor  # int8 [outs, ins] for INT8, uint8 for INT4
    scales: Tensor  # float16 [outs, groups]
    minima: Tensor | None  # float16 [outs, groups] for INT4


def num_groups(ins: int) -> int:
    return -(-ins // GROUP)


def panel_bytes(kind: Kind, ins: int, outs: int) -> int:
    return -(-outs // PANEL) * num_groups(ins) * _GROUP_BYTES[kind]


class Packer:
    """Packs with the library, into memory of its own."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._memory = PanelMemory()
        self._bf16, self._int8, self._int4 = library.pdq_pack_bf16, library.pdq_pack_int8, library.pdq_pack_int4
        for function, num_pointers in ((self._bf16, 1), (self._int8, 2), (self._int4, 3)):
            function.argtypes = [*[c_void_p] * num_pointers, c_int64, c_int64, c_void_p]
            function.restype = None

    def pack(self, weight: Tensor) -> PanelMatrix:
        """weight: bfloat16 [outs, ins]"""
        assert weight.dtype == torch.bfloat16 and weight.device.type == "cpu"
        outs, ins = weight.shape
        weight = weight.contiguous()
        matrix = self._empty(Kind.BF16, ins, outs)
        self._bf16(weight.data_ptr(), ins, outs, matrix.panels.data_ptr())
        return matrix

    def pack_codes(self, weight: Codes) -> PanelMatrix:
        """Exactly what is given."""
        outs, ins = weight.codes.shape
        codes, scales = weight.codes.contiguous(), weight.scales.contiguous()
        assert scales.shape == (outs, num_groups(ins)) and scales.dtype == torch.float16
        if weight.minima is None:
            assert codes.dtype == torch.int8
            matrix = self._empty(Kind.INT8, ins, outs)
            to = matrix.panels.data_ptr()
            self._int8(codes.data_ptr(), scales.data_ptr(), ins, outs, to)
            return matrix
        minima = weight.minima.contiguous()
        assert codes.dtype == torch.uint8 and minima.shape == scales.shape and minima.dtype == torch.float16
        matrix = self._empty(Kind.INT4, ins, outs)
        pointers = codes.data_ptr(), scales.data_ptr(), minima.data_ptr()
        self._int4(*pointers, ins, outs, matrix.panels.data_ptr())
        return matrix

    def _empty(self, kind: Kind, ins: int, outs: int) -> PanelMatrix:
        return PanelMatrix(self._memory.take(panel_bytes(kind, ins, outs)), kind, ins, outs)


def quantize(weight: Tensor, kind: Kind) -> Codes:
    """A float weight [outs, ins] to the nearest codes: INT8 by each group's largest, INT4 from its least to its most.

    Scales and minima are rounded to float16 first and codes chosen for these. Ties to even.
    """
    outs, ins = weight.shape
    groups = F.pad(weight.float(), (0, num_groups(ins) * GROUP - ins)).view(outs, -1, GROUP)
    if kind is Kind.INT8:
        scales = (groups.abs().amax(dim=-1) / 127).half()
        codes = (groups * _inverse(scales)).round_().clamp_(-127, 127).to(torch.int8)
        return Codes(codes.flatten(1)[:, :ins].contiguous(), scales, None)
    assert kind is Kind.INT4
    # Padding takes no part: it is given the group's first weight.
    if ins % GROUP:
        groups[:, -1, ins % GROUP :] = groups[:, -1, :1]
    least, most = groups.aminmax(dim=-1)
    minima, scales = least.half(), ((most - least) / 15).half()
    codes = groups.sub_(minima.float().unsqueeze(-1)).mul_(_inverse(scales)).round_().clamp_(0, 15).to(torch.uint8)
    return Codes(codes.flatten(1)[:, :ins].contiguous(), scales, minima)


def _inverse(scales: Tensor) -> Tensor:
    values = scales.float().unsqueeze(-1)
    return torch.where(values == 0, torch.zeros(()), 1 / values)


def dequantize(weight: Codes) -> Tensor:
    """-> float32 [outs, ins]"""
    ins = weight.codes.shape[1]

    def every_input(values: Tensor) -> Tensor:
        return values.double().repeat_interleave(GROUP, dim=1)[:, :ins]

    # In float64 the product and the sum are exact, so that this rounds once, as a fused multiply-add does.
    values = weight.codes.double() * every_input(weight.scales)
    return (values if weight.minima is None else values + every_input(weight.minima)).float()


def unpack_codes(matrix: PanelMatrix) -> Codes:
    """What `Packer.pack_codes` was given."""
    groups = num_groups(matrix.ins)
    panels: Tensor = matrix.panels.view(-1, groups, _GROUP_BYTES[matrix.kind])
    num_code_bytes = 512 if matrix.kind is Kind.INT8 else 256
    shape = (-1, groups, num_code_bytes // 64, PANEL, 4)
    fours: Tensor = panels[..., :num_code_bytes].reshape(shape)
    if matrix.kind is Kind.INT4:
        fours = torch.stack((fours & 15, fours >> 4), dim=3).flatten(2, 3)
    codes = fours.permute(0, 3, 1, 2, 4).reshape(-1, groups * GROUP)[: matrix.outs, : matrix.ins].contiguous()
    halves = panels[..., num_code_bytes:].contiguous().view(torch.float16).view(panels.shape[0], groups, -1, PANEL)
    # [scales and minima, outs, groups]
    of_outputs = halves.permute(2, 0, 3, 1).reshape(halves.shape[2], -1, groups)[:, : matrix.outs].contiguous()
    if matrix.kind is Kind.INT8:
        return Codes(codes.view(torch.int8), of_outputs[0], None)
    return Codes(codes, of_outputs[0], of_outputs[1])


def unpack(matrix: PanelMatrix) -> Tensor:
    """-> [outs, ins], bfloat16 for BF16, else float32"""
    if matrix.kind is not Kind.BF16:
        return dequantize(unpack_codes(matrix))
    pairs = matrix.panels.view(torch.bfloat16).view(-1, num_groups(matrix.ins) * GROUP // 2, PANEL, 2)
    rows = pairs.transpose(1, 2).reshape(-1, num_groups(matrix.ins) * GROUP)
    return rows[: matrix.outs, : matrix.ins].contiguous()


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """bfloat16 [rows, ins] -> int8 [rows, groups, 32], float32 scales [rows, groups]: `quantize_row` of tiles.h."""
    rows, ins = x.shape
    groups = F.pad(x.float(), (0, num_groups(ins) * GROUP - ins)).view(rows, -1, GROUP)
    largest = groups.abs().amax(dim=-1)
    is_zero = largest < SMALLEST
    # Not 127 / largest: torch makes that 127 * (1 / largest), which rounds twice.
    inverse = torch.full_like(largest, 127).div(largest).masked_fill(is_zero, 0)
    values = groups * inverse.unsqueeze(-1)
    return values.round().to(torch.int8), (largest / 127).masked_fill(is_zero, 0)


def linear(x: Tensor, matrix: PanelMatrix, bias: Tensor | None) -> Tensor:
    """The product's twin in float64: of the rows as they are for BF16, of the quantized rows else. -> float64"""
    if matrix.kind is not Kind.BF16:
        values, scales = quantize_rows(x)
        x = (values.double() * scales.double().unsqueeze(-1)).flatten(1)[:, : matrix.ins]
    out = x.double() @ unpack(matrix).double().T
    return out if bias is None else out + bias.double()
