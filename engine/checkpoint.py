"""A directory of safetensors: which tensors there are, each of them or parts of it. Knows no model.

Files are memory-mapped, so a tensor costs memory only where it is copied to.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from errors import ModelError

INDEX_NAME = "model.safetensors.index.json"
SMALL_TENSOR_BYTES = 64 << 10
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


class Checkpoint:
    """The tensors of a model directory, single file or sharded. Raises ModelError for what is missing or broken."""

    def __init__(self, model_dir: Path) -> None:
        self.model_dir = model_dir
        self._files: dict[str, Any] = {}  # safetensors has no types
        self._file_of: dict[str, str] = {}
        for name in _file_names(model_dir):
            try:
                opened: Any = safe_open(model_dir / name, framework="pt", device="cpu")
            except (OSError, SafetensorError) as error:
                raise ModelError(f"cannot read {model_dir / name}: {error}") from None
            self._files[name] = opened
            self._file_of.update(dict.fromkeys(opened.keys(), name))
        self._left = set(self._file_of)
        self._taken_elements = 0
        self._all_elements = sum(math.prod(self.shape(name)) for name in self._file_of) or 1

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    @property
    def share_taken(self) -> float:
        """Share of all elements that were taken, 0..1."""
        return self._taken_elements / self._all_elements

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape."""
        return tuple(self._files[self._file_of[name]].get_slice(name).get_shape())

    def take(
        self,
        name: str,
        shape: tuple[int, ...],
        rows: range | None = None,
        columns: range | None = None,
        dtypes: tuple[torch.dtype, ...] = FLOATS,
    ) -> Tensor:
        """The tensor, which must have that shape and be of one of these types, or some rows (and columns) of it:
        nothing else of it is read."""
        if name not in self._file_of:
            raise ModelError(f"{self.model_dir} lacks the tensor {name}, which its config.json asks for")
        if self.shape(name) != shape:
            raise ModelError(f"{self.model_dir}: {name} has shape {list(self.shape(name))}, config.json: {list(shape)}")
        if name in self._left:
            self._left.discard(name)
            self._taken_elements += math.prod(shape)
        file = self._files[self._file_of[name]]
        if rows is None and columns is None:
            tensor: Tensor = file.get_tensor(name)
        else:
            rows = range(shape[0]) if rows is None else rows
            parts = [slice(part.start, part.stop) for part in (rows, columns) if part is not None]
            tensor = file.get_slice(name)[tuple(parts)]
        if tensor.dtype not in dtypes:
            supported = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise ModelError(f"{self.model_dir}: {name} is {tensor.dtype}; {supported} is supported")
        return tensor

    def untaken(self) -> list[str]:
        """Names of the tensors that nobody took."""
        return sorted(self._left)

    @property
    def num_bytes(self) -> int:
        """Of all its files."""
        return sum((self.model_dir / name).stat().st_size for name in self._files)

    def identity(self) -> str:
        """Which files these are, without reading them: two trainings with the same norms have one `hash`."""
        told = []
        for name in sorted(self._files):
            path = (self.model_dir / name).resolve()
            status = path.stat()
            told.append(f"{path} {status.st_size} {status.st_mtime_ns}")
        return hashlib.sha256("\n".join(told).encode()).hexdigest()

    def hash(self) -> str:
        """Hex digest of config.json, of every tensor's name, type and shape, and of the content of the small ones.

        The small tensors (norms) tell apart two trainings of one model at the cost of a few kilobytes.
        """
        digest = hashlib.sha256((self.model_dir / "config.json").read_bytes())
        for name in sorted(self._file_of):
            piece = self._files[self._file_of[name]].get_slice(name)
            digest.update(f"{name} {piece.get_dtype()} {piece.get_shape()}\n".encode())
            if math.prod(piece.get_shape()) * 4 <= SMALL_TENSOR_BYTES:
                tensor = self._files[self._file_of[name]].get_tensor(name)
                digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def _file_names(model_dir: Path) -> list[str]:
    index = model_dir / INDEX_NAME
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{index} is no index of safetensors: {error!r}") from None
        if any(Path(name).name != name for name in names):
            raise ModelError(f"{index} names files outside its directory")
        return names
    if (model_dir / "model.safetensors").exists():
        return ["model.safetensors"]
    raise ModelError(f"{model_dir} holds no {INDEX_NAME} and no model.safetensors")
