"""The turn of every position: cos and sin by the frequencies of `engine/rope_scaling.py`. Knows no model."""

import torch
from torch import Tensor

from engine.rope_scaling import RopeScaling


class Rotation:
    """One set of frequencies on one device."""

    def __init__(self, rope: RopeScaling, head_dim: int, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype = dtype
        self._frequencies = rope.inverse_frequencies(head_dim).to(device)
        # Dimensions that are not rotated are not scaled either.
        scaled = torch.where(self._frequencies == 0, 1.0, rope.attention_factor)
        self._factors = torch.cat((scaled, scaled))
        self._first: tuple[Tensor, Tensor] | None = None  # cos and sin of the first positions

    def of(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions: int64 [T] -> cos and sin, [T, head_dim] each, both halves of a head alike."""
        half = positions.unsqueeze(1).float() * self._frequencies
        angles = torch.cat((half, half), dim=-1)
        return (angles.cos() * self._factors).to(self._dtype), (angles.sin() * self._factors).to(self._dtype)

    def up_to(self, position: int) -> tuple[Tensor, Tensor]:
        """cos and sin of positions 0 to `position` and more, [positions, head_dim] each."""
        if self._first is None or len(self._first[0]) <= position:
            # In powers of two: 256 KB at 1024 positions, 32 MB at 131,072.
            positions = torch.arange(max(1024, 1 << position.bit_length()), device=self._frequencies.device)
            self._first = self.of(positions)
        return self._first
