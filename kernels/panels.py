"""temporary"""
import ctypes
from dataclasses import dataclass
from ctypes import Structure, c_int64, c_void_p
import torch
from torch import Tensor

class CMatrix(Structure):
    _fields_ = [("panels", c_void_p), ("kind", c_int64), ("ins", c_int64), ("outs", c_int64)]

@dataclass(frozen=True, slots=True)
class PanelMatrix:
    panels: Tensor
    kind: int
    ins: int
    outs: int
    def as_c(self):
        return CMatrix(self.panels.data_ptr(), self.kind, self.ins, self.outs)

def pack(library, weight):
    outs, ins = weight.shape
    weight = weight.contiguous()
    n = -(-outs // 16) * -(-ins // 32) * 32 * 16 * 2
    panels = torch.empty(n, dtype=torch.uint8)
    library.pdq_pack_bf16.argtypes=[c_void_p,c_int64,c_int64,c_void_p]
    library.pdq_pack_bf16(weight.data_ptr(), ins, outs, panels.data_ptr())
    return PanelMatrix(panels, 0, ins, outs)
