"""Rotary frequencies, from `rope_theta` and `rope_scaling` (transformers 4) or `rope_parameters` (5) in config.json.

The formulas are those of the papers as transformers has them, so that positions turn by the same angles. Knows no
weights and no positions.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from errors import ModelError

SUPPORTED_ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are derived. Values that a type does not use are at their defaults."""

    theta: float = 10000.0
    rope_type: str = "default"
    factor: float = 1.0
    original_max_positions: int = 0  # the context the model was first trained with
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    truncate: bool = True  # yarn
    attention_factor: float = 1.0  # yarn, longrope: cos and sin are multiplied by it
    frequency_factors: tuple[float, ...] = ()  # longrope: one divisor per frequency
    rotary_share: float = 1.0  # of a head's dimensions, from the first on; the rest is not rotated
    max_positions: int | None = None  # longrope with two sets of factors: where the first one ends

    @classmethod
    def from_config(cls, config: dict[str, Any], max_positions: int, may_be_partial: bool = False) -> "RopeScaling":
        """What config.json says. Raises ModelError for a type that is not supported, or one without its values.

        `may_be_partial`: the family rotates no more of a head than partial_rotary_factor says.
        """
        said = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if any(isinstance(value, dict) for value in said.values()):
            raise ModelError("rope_parameters differ between layer types; one set for all layers is supported")
        rope_type = said.get("rope_type") or said.get("type") or "default"
        if rope_type not in SUPPORTED_ROPE_TYPES:
            raise ModelError(f"rope type {rope_type!r} is not supported; {', '.join(SUPPORTED_ROPE_TYPES)} are")
        rotary_share = float(said.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) or 1.0)
        if not (0 < rotary_share <= 1 if may_be_partial else rotary_share == 1):
            wanted = "more than 0 and at most 1" if may_be_partial else "1 in this family"
            raise ModelError(f"partial_rotary_factor {rotary_share} is not supported; it must be {wanted}")
        theta = float(said.get("rope_theta") or config.get("rope_theta") or 10000.0)
        original = int(
            said.get("original_max_position_embeddings")
            or config.get("original_max_position_embeddings")
            or max_positions
        )
        factor = said.get("factor")
        if rope_type in ("linear", "dynamic", "llama3") and factor is None:
            raise ModelError(f"rope type {rope_type!r} needs a factor in rope_scaling")
        factor = float(factor or max_positions / original)
        frequency_factors, has_two_sets = _frequency_factors(rope_type, said)
        if has_two_sets and original >= max_positions:
            has_two_sets = False  # no position is beyond the first
        return cls(
            theta=theta,
            rope_type=rope_type,
            factor=factor,
            original_max_positions=original,
            low_freq_factor=float(said.get("low_freq_factor", 1.0)),
            high_freq_factor=float(said.get("high_freq_factor", 4.0)),
            beta_fast=float(said.get("beta_fast") or 32.0),
            beta_slow=float(said.get("beta_slow") or 1.0),
            truncate=bool(said.get("truncate", True)),
            attention_factor=_attention_factor(rope_type, said, factor, original),
            frequency_factors=frequency_factors,
            rotary_share=rotary_share,
            max_positions=original if has_two_sets else None,
        )

    def max_context_tokens(self, max_positions: int) -> int:
        """Positions the scaled rotation is good for. A yarn config may still state the unscaled length."""
        if self.rope_type == "yarn":
            return max(max_positions, int(self.original_max_positions * self.factor))
        return max_positions if self.max_positions is None else self.max_positions

    def rotary_dim(self, head_dim: int) -> int:
        """How many dimensions of a head are rotated. Raises ModelError where they are no pairs."""
        rotary_dim = int(head_dim * self.rotary_share)
        if rotary_dim % 2 or not rotary_dim or head_dim % 2:
            raise ModelError(f"{rotary_dim} rotated dimensions of {head_dim} are no pairs; both must be even")
        return rotary_dim

    def inverse_frequencies(self, head_dim: int) -> Tensor:
        """Angle per position of each pair of dimensions; 0 for those beyond `rotary_dim`. -> float32 [head_dim / 2]"""
        rotary_dim = self.rotary_dim(head_dim)
        return F.pad(self._rotated_frequencies(rotary_dim), (0, (head_dim - rotary_dim) // 2))

    def _rotated_frequencies(self, head_dim: int) -> Tensor:
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float) / head_dim
        plain = 1.0 / (self.theta**exponents)
        if self.rope_type == "linear":
            return plain / self.factor
        if self.rope_type == "llama3":
            return self._llama3(plain)
        if self.rope_type == "yarn":
            return self._yarn(plain, head_dim)
        if self.rope_type == "longrope":
            if len(self.frequency_factors) != head_dim // 2:
                raise ModelError(f"longrope has {len(self.frequency_factors)} factors for {head_dim // 2} frequencies")
            return plain / torch.tensor(self.frequency_factors)
        # "dynamic" changes nothing up to max_position_embeddings, and no request is let beyond that.
        return plain

    def _llama3(self, plain: Tensor) -> Tensor:
        wavelengths = 2 * math.pi / plain
        longest = self.original_max_positions / self.low_freq_factor
        shortest = self.original_max_positions / self.high_freq_factor
        smooth = (self.original_max_positions / wavelengths - self.low_freq_factor) / (
            self.high_freq_factor - self.low_freq_factor
        )
        between = (1 - smooth) * plain / self.factor + smooth * plain
        scaled = torch.where(wavelengths > longest, plain / self.factor, plain)
        return torch.where((wavelengths >= shortest) & (wavelengths <= longest), between, scaled)

    def _yarn(self, plain: Tensor, head_dim: int) -> Tensor:
        def dimension_of(num_rotations: float) -> float:
            turns = self.original_max_positions / (num_rotations * 2 * math.pi)
            return head_dim * math.log(turns) / (2 * math.log(self.theta))

        low, high = dimension_of(self.beta_fast), dimension_of(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        if low == high:
            high += 0.001  # the ramp's slope is finite
        ramp = ((torch.arange(head_dim // 2, dtype=torch.float) - low) / (high - low)).clamp(0, 1)
        return plain / self.factor * ramp + plain * (1 - ramp)


def _attention_factor(rope_type: str, said: dict[str, Any], factor: float, original: int) -> float:
    if rope_type not in ("yarn", "longrope"):
        return 1.0
    if said.get("attention_factor") is not None:
        return float(said["attention_factor"])
    if rope_type == "longrope":
        return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))

    def mscale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if said.get("mscale") and said.get("mscale_all_dim"):
        return mscale(float(said["mscale"])) / mscale(float(said["mscale_all_dim"]))
    return mscale(1.0)


def _frequency_factors(rope_type: str, said: dict[str, Any]) -> tuple[tuple[float, ...], bool]:
    """The set for sequences of the original length, and whether there is another one for longer ones.

    The other one would change the angles of keys that are cached already, so there are no longer sequences then.
    """
    if rope_type != "longrope":
        return (), False
    short, long = said.get("short_factor"), said.get("long_factor")
    if not short or not long:
        raise ModelError("rope type 'longrope' needs a short_factor and a long_factor in rope_scaling")
    return tuple(float(value) for value in short), short != long
