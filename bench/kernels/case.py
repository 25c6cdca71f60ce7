"""One launch of one kernel family that tests, the compiler's report, the roofline table and `pdq doctor --gpu` share.

A case makes its inputs on whatever device it is given, launches as the engine does, and knows the plain twin, the
tolerance, what the launch must move and compute, and what its machine code has to look like.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

CAPABILITIES = (80, 90, 100, 120)  # A100, H100, B200, RTX 50 / RTX PRO 6000
FLOAT8_CAPABILITIES = (90, 100, 120)  # e4m3 needs sm_89
MAX_SHARED_BYTES = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}  # per block, CUDA guide table 28

Outputs = Tensor | Sequence[Tensor]


class Inputs:
    """Makes a case's tensors: seeded values to compute with, or mere memory where a launch is only compiled."""

    def __init__(self, device: torch.device, compile_only: bool = False, seed: int = 0) -> None:
        self.device = device
        self._compile_only = compile_only
        # Drawn on the CPU, so that every device gets the same numbers.
        self._generator = torch.Generator().manual_seed(seed)

    def randn(self, *shape: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
        """Normal values of standard deviation `scale`."""
        if self._compile_only:
            return torch.empty(shape, dtype=dtype, device=self.device)
        values = torch.randn(shape, generator=self._generator) * scale
        return values.to(dtype).to(self.device)

    def zeros(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Memory that is written to."""
        return torch.zeros(shape, dtype=dtype, device=self.device)

    def integers(self, low: int, high: int, *shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        """Uniform in [low, high)."""
        if self._compile_only:
            return torch.full(shape, low, dtype=dtype, device=self.device)
        return torch.randint(low, high, shape, generator=self._generator).to(dtype).to(self.device)

    def permutation(self, count: int, *shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        """Distinct values of [0, count), as many as `shape` holds."""
        total = torch.Size(shape).numel()
        if self._compile_only:
            return torch.zeros(shape, dtype=dtype, device=self.device)
        return torch.randperm(count, generator=self._generator)[:total].view(shape).to(dtype).to(self.device)

    def tensor(self, values: list[int] | list[float] | list[list[int]], dtype: torch.dtype = torch.int32) -> Tensor:
        """These very values."""
        return torch.tensor(values, dtype=dtype, device=self.device)


@dataclass(frozen=True, slots=True)
class Expected:
    """What the machine code of a case's kernels has to look like. Opcodes are SASS prefixes, e.g. LDG.E.128."""

    max_registers: int = 255
    opcodes: Mapping[int, Sequence[str]] = field(default_factory=dict)  # capability -> in at least one of its kernels
    opcodes_everywhere: Sequence[str] = ()  # on every capability, in at least one of its kernels
    forbidden: Sequence[str] = ()  # in none of its kernels


@dataclass(frozen=True, slots=True)
class KernelCase:
    """One launch. `launch` and `twin` take what `make` gives and return what is compared."""

    family: str  # stem of the file in kernels/gpu/
    name: str
    make: Callable[[Inputs], tuple[Any, ...]]
    launch: Callable[..., Outputs]
    twin: Callable[..., Outputs]
    tolerance: float  # absolute and relative; 0: every bit
    traffic_bytes: int  # what must be read and written at least once
    flops: int = 0
    expected: Expected = Expected()
    capabilities: Sequence[int] = CAPABILITIES  # where it can run
    on_tensor_cores: bool = False  # where `flops` are computed; else by the float32 units

    def runs_on(self, capability: int) -> bool:
        """Whether a GPU of that compute capability is one that the case is for."""
        return capability >= min(self.capabilities)


def outputs_of(outputs: Outputs) -> list[Tensor]:
    """One or several, as a list."""
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def max_error(ours: Outputs, wanted: Outputs) -> float:
    """The largest |ours - wanted| / (1 + |wanted|) of all outputs; inf where shapes, types or NaNs differ."""
    worst = 0.0
    for mine, theirs in zip(outputs_of(ours), outputs_of(wanted), strict=True):
        if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
            return float("inf")
        if not mine.numel():
            continue
        left, right = mine.cpu().double(), theirs.cpu().double()
        if not torch.equal(left.isfinite(), right.isfinite()):
            return float("inf")
        difference = ((left - right).abs() / (1 + right.abs())).nan_to_num(0.0)
        worst = max(worst, float(difference.max()))
    return worst
