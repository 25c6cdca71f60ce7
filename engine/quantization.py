"""How a checkpoint's weights are quantized: config.json's `quantization_config`, checked. Knows no tensors.

Which linears are quantized is not asked here: their tensors say so (`engine/quantized_weights.py`). The lists of
exceptions in configs are names, suffixes, parts of names or regular expressions, depending on the tool that wrote them.
"""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from errors import ModelError

GROUP_SIZES = (32, 64, 128, -1)


class WeightFormat(StrEnum):
    """What the tensors of a quantized linear are; the value is the config's `quant_method`."""

    FP8 = "fp8"  # e4m3, a scale per block of 128 x 128
    COMPRESSED_TENSORS = "compressed-tensors"  # e4m3, a scale per output or per tensor
    AWQ = "awq"  # 4 bits, words along the outputs
    GPTQ = "gptq"  # 4 bits, words along the inputs


@dataclass(frozen=True, slots=True)
class Quantization:
    """A supported way of quantizing."""

    format: WeightFormat
    group_size: int | None = None  # inputs that share a scale; None: all of them
    zero_offset: int = 0  # what was taken from GPTQ's zero points before they were stored

    @classmethod
    def from_config(cls, said: dict[str, Any]) -> "Quantization":
        """said: `quantization_config`. Raises ModelError that names what is not supported, and what is."""
        method = said.get("quant_method")
        _refuse_others("quantized weights", "quant_method", method, [one.value for one in WeightFormat])
        match WeightFormat(str(method)):
            case WeightFormat.FP8:
                return _fp8(said)
            case WeightFormat.COMPRESSED_TENSORS:
                return _compressed_tensors(said)
            case WeightFormat.AWQ:
                return _awq(said)
            case WeightFormat.GPTQ:
                return _gptq(said)


def _refuse_others(what: str, key: str, value: Any, supported: Collection[Any]) -> None:
    if value not in supported:
        choices = " or ".join(repr(one) for one in supported)
        raise ModelError(f"{what} with {key} {value!r} are not supported; {choices} is")


def _fp8(said: dict[str, Any]) -> Quantization:
    what = "fp8 weights"
    _refuse_others(what, "weight_block_size", said.get("weight_block_size"), [[128, 128]])
    _refuse_others(what, "activation_scheme", said.get("activation_scheme", "dynamic"), ["dynamic"])
    _refuse_others(what, "fmt", said.get("fmt", "e4m3"), ["e4m3"])
    return Quantization(WeightFormat.FP8, group_size=128)


def _compressed_tensors(said: dict[str, Any]) -> Quantization:
    what = "compressed-tensors weights"
    _refuse_others(what, "format", said.get("format"), ["float-quantized"])
    _refuse_others(what, "kv_cache_scheme", said.get("kv_cache_scheme"), [None])
    groups = list((said.get("config_groups") or {}).values())
    _refuse_others(what, "number of config_groups", len(groups), [1])
    for of in ("weights", "input_activations"):
        scheme = groups[0].get(of) or {}
        _refuse_others(what, f"{of} num_bits", scheme.get("num_bits"), [8])
        _refuse_others(what, f"{of} type", scheme.get("type"), ["float"])
    _refuse_others(what, "weights strategy", groups[0]["weights"].get("strategy"), ["tensor", "channel"])
    return Quantization(WeightFormat.COMPRESSED_TENSORS)


def _awq(said: dict[str, Any]) -> Quantization:
    what = "awq weights"
    _refuse_others(what, "bits", said.get("bits", said.get("w_bit")), [4])
    _refuse_others(what, "zero_point", said.get("zero_point", True), [True])
    _refuse_others(what, "version", str(said.get("version", "gemm")).lower(), ["gemm"])
    group_size = said.get("group_size", said.get("q_group_size", 128))
    return Quantization(WeightFormat.AWQ, _group_size(what, group_size))


def _gptq(said: dict[str, Any]) -> Quantization:
    what = "gptq weights"
    _refuse_others(what, "bits", said.get("bits"), [4])
    stored = said.get("checkpoint_format") or said.get("format") or "gptq"
    _refuse_others(what, "checkpoint_format", stored, ["gptq", "gptq_v2"])
    # GPTQModel's exceptions by module: those that begin with `-:` are left unquantized, others have other bits.
    others = [pattern for pattern in said.get("dynamic") or {} if not pattern.startswith("-:")]
    _refuse_others(what, "modules of their own kind (dynamic)", others, [[]])
    zero_offset = 1 if stored == "gptq" else 0
    return Quantization(WeightFormat.GPTQ, _group_size(what, said.get("group_size", 128)), zero_offset)


def _group_size(what: str, said: Any) -> int | None:
    _refuse_others(what, "group_size", said, GROUP_SIZES)
    return None if said == -1 else int(said)
