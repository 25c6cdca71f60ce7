"""The codes of a GGUF file's quantized matrices, beside its conversion to bfloat16, for int8 and int4 weights.

Q4_1, Q4_0 and Q8_0 have groups of 32 inputs with float16 scales, as our panels do, so nothing is rounded. Codes cannot
be had back from dequantized weights: those are rounded to bfloat16. Other types are quantized anew at load.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from errors import ModelError
from kernels.panels import GROUP, Codes

FILE_NAME = "codes.gguf-safetensors"  # no *.safetensors: those are the model's tensors


def codes_of_blocks(blocks: np.ndarray[Any, Any], type_name: str) -> Codes | None:
    """blocks: uint8 [outs, bytes of a row], as the file has them; None for types whose codes we have no panels for."""
    if type_name not in ("Q4_0", "Q4_1", "Q8_0"):
        return None
    block_bytes = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}[type_name]
    rows = torch.from_numpy(np.array(blocks)).view(blocks.shape[0], -1, block_bytes)
    num_halves = 2 if type_name == "Q4_1" else 1
    halves = rows[..., : 2 * num_halves].contiguous().view(torch.float16)
    scales, rest = halves[..., 0].contiguous(), rows[..., 2 * num_halves :]
    if type_name == "Q8_0":
        return Codes(rest.contiguous().view(torch.int8).flatten(1), scales, None)
    codes = torch.cat((rest & 15, rest >> 4), dim=-1).flatten(1)  # low nibbles are the first half of a block
    # Q4_0 is scale * (code - 8), and 8 * scale is exact.
    return Codes(codes, scales, halves[..., 1].contiguous() if num_halves == 2 else -8 * scales)


def reordered(codes: Codes, order: Callable[[Tensor], Tensor]) -> Codes:
    """`order` moves outputs of a [outs, ...] tensor."""
    minima = None if codes.minima is None else order(codes.minima)
    return Codes(order(codes.codes), order(codes.scales), minima)


class CodesFile:
    """The codes of a converted model's matrices by their Hugging Face names."""

    def __init__(self, model_dir: Path) -> None:
        self._file: Any = None
        path = model_dir / FILE_NAME
        if path.is_file():
            try:
                self._file = safe_open(path, framework="pt", device="cpu")
            except (OSError, SafetensorError) as error:
                raise ModelError(f"cannot read {path}: {error}") from None
        self._names = set() if self._file is None else set(self._file.keys())

    def of(self, name: str, rows: range, columns: range) -> Codes | None:
        """Of some outputs and inputs; None where the file has none, or a group would be cut."""
        if f"{name}.codes" not in self._names or columns.start % GROUP:
            return None
        groups = slice(columns.start // GROUP, -(-columns.stop // GROUP))
        outputs = slice(rows.start, rows.stop)
        scales = self._file.get_slice(f"{name}.scales")[outputs, groups]
        if f"{name}.minima" not in self._names:
            return Codes(self._file.get_slice(f"{name}.codes")[outputs, columns.start : columns.stop], scales, None)
        pairs = self._file.get_slice(f"{name}.codes")[outputs, columns.start // 2 : -(-columns.stop // 2)]
        codes = torch.stack((pairs & 15, pairs >> 4), dim=-1).flatten(1)[:, : len(columns)]
        return Codes(codes, scales, self._file.get_slice(f"{name}.minima")[outputs, groups])


def write_codes(codes: dict[str, Codes], target: Path) -> None:
    """codes: by the matrix's name. 4-bit codes lie two in a byte, the even input below."""
    tensors: dict[str, Tensor] = {}
    for name, value in codes.items():
        stored = value.codes
        if value.minima is not None:
            stored = stored[:, 0::2] | stored[:, 1::2] << 4
            tensors[f"{name}.minima"] = value.minima.contiguous()
        tensors[f"{name}.codes"], tensors[f"{name}.scales"] = stored.contiguous(), value.scales.contiguous()
    if tensors:
        save_file(tensors, target / FILE_NAME)
        (target / FILE_NAME).chmod(0o644)
