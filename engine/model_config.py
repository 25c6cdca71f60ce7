"""What config.json and generation_config.json say about a model, in our words, checked before a weight is read.

A family is a row of a table: what its config leaves unsaid, and how its tensors are named (`engine/weights.py`).
Whatever the decoder of `engine/model.py` cannot compute exactly is refused here by name. Knows no tensors.
"""

import json
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from engine.quantization import Quantization
from engine.rope_scaling import RopeScaling
from messages import ModelError


class RewardHead(StrEnum):
    """What a reward model has in place of the language head; one number comes out."""

    LINEAR = "linear"  # score.weight, of *ForSequenceClassification with one label
    VALUE = "value"  # v_head.weight, of InternLM2
    TWO_LAYER = "two_layer"  # score.0 -> ReLU -> score.2, of Qwen2


class TensorNames(StrEnum):
    """Whose tensor names a checkpoint uses."""

    LLAMA = "llama"
    INTERNLM2 = "internlm2"  # query, key and value of a group of heads interleaved in one wqkv


@dataclass(frozen=True, slots=True)
class Family:
    """What architectures of one name stem share."""

    names: TensorNames = TensorNames.LLAMA
    qkv_bias: bool | None = None  # None: the config says
    output_bias: bool | None = None  # None: the config says
    bias_key: str = "attention_bias"  # the config's word for both
    qk_norm: bool = False
    head_dim: int | None = None  # None: hidden_size / num_heads
    sliding_window: int | None = None  # when the config does not say
    windowed_by_layer: bool = False  # use_sliding_window and max_window_layers, or layer_types


FAMILIES = {
    "Llama": Family(),
    "Mistral": Family(qkv_bias=False, output_bias=False, sliding_window=4096),
    "Qwen2": Family(qkv_bias=True, output_bias=False, sliding_window=4096, windowed_by_layer=True),
    "Qwen3": Family(qk_norm=True, head_dim=128, sliding_window=4096, windowed_by_layer=True),
    "InternLM2": Family(names=TensorNames.INTERNLM2, bias_key="bias"),
}
SUPPORTED = ", ".join(f"{stem}ForCausalLM" for stem in FAMILIES)
SUPPORTED_REWARDS = "InternLM2ForRewardModel, Qwen2ForRewardModel and *ForSequenceClassification with one label"


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A supported model. `from_dir` is the only way in."""

    architecture: str  # e.g. LlamaForCausalLM
    names: TensorNames
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: RopeScaling
    max_position_embeddings: int  # most tokens of a sequence, rope scaling included
    sliding_windows: tuple[int | None, ...]  # per layer; None: sees everything before it
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    tie_word_embeddings: bool
    dtype: str  # of the checkpoint, quantized weights apart: float32, bfloat16 or float16
    eos_token_ids: tuple[int, ...]
    reward_head: RewardHead | None = None
    quantization: Quantization | None = None
    reward_token_id: int | None = None  # the token at which the reward is read, where the config names one
    generation_defaults: dict[str, Any] = field(default_factory=dict)  # generation_config.json as it stands

    @property
    def is_reward(self) -> bool:
        """Whether the model answers with a score, not with tokens."""
        return self.reward_head is not None

    @classmethod
    def from_dir(cls, path: Path) -> "ModelConfig":
        """Read the directory's configs. Raises ModelError naming what is missing or not supported."""
        config = _read_json(path / "config.json")
        generation = _read_json(path / "generation_config.json") if (path / "generation_config.json").exists() else {}
        try:
            return _parse(config, generation)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{path / 'config.json'} is not a config of a supported model: {error!r}") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}; a model directory holds config.json") from None
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}") from None
    if not isinstance(said, dict):
        raise ModelError(f"{path} holds no JSON object")
    return said


def _parse(config: dict[str, Any], generation: dict[str, Any]) -> ModelConfig:
    architecture, family, reward_head = _architecture(config)
    _refuse_unsupported(config, architecture)
    num_layers, num_heads = int(config["num_hidden_layers"]), int(config["num_attention_heads"])
    num_kv_heads = int(config.get("num_key_value_heads") or num_heads)
    hidden_size = int(config["hidden_size"])
    head_dim = int(config.get("head_dim") or family.head_dim or hidden_size // num_heads)
    if num_heads % num_kv_heads:
        raise ModelError(f"{num_heads} attention heads cannot share {num_kv_heads} key-value heads evenly")
    if head_dim % 2:
        raise ModelError(f"head_dim {head_dim} is odd; rotary embedding takes pairs")
    max_positions = int(config["max_position_embeddings"])
    rope = RopeScaling.from_config(config, max_positions)
    bias = bool(config.get(family.bias_key, False))
    eos = generation.get("eos_token_id")
    return ModelConfig(
        architecture=architecture,
        names=family.names,
        vocab_size=int(config["vocab_size"]),
        hidden_size=hidden_size,
        intermediate_size=int(config["intermediate_size"]),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        rope=rope,
        max_position_embeddings=rope.max_context_tokens(max_positions),
        sliding_windows=_sliding_windows(config, family, num_layers),
        qkv_bias=bias if family.qkv_bias is None else family.qkv_bias,
        output_bias=bias if family.output_bias is None else family.output_bias,
        mlp_bias=bool(config.get("mlp_bias", False)),
        qk_norm=family.qk_norm,
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        dtype=_dtype(config),
        eos_token_ids=_token_ids(config.get("eos_token_id") if eos is None else eos),
        reward_head=reward_head,
        quantization=_quantization(config, architecture, family),
        reward_token_id=config.get("reward_token_id"),
        generation_defaults=generation,
    )


def _architecture(config: dict[str, Any]) -> tuple[str, Family, RewardHead | None]:
    named = config.get("architectures") or ["(none named)"]
    architecture = str(named[0])
    stem, _, kind = architecture.partition("For")
    family = FAMILIES.get(stem)
    if family is None or kind not in ("CausalLM", "SequenceClassification", "RewardModel"):
        raise ModelError(f"architecture {architecture} is not supported; {SUPPORTED}, {SUPPORTED_REWARDS} are")
    if kind == "CausalLM":
        return architecture, family, None
    if kind == "RewardModel":
        heads = {"InternLM2": RewardHead.VALUE, "Qwen2": RewardHead.TWO_LAYER}
        if stem not in heads:
            raise ModelError(f"architecture {architecture} is not supported; of reward models {SUPPORTED_REWARDS} are")
        return architecture, family, heads[stem]
    # transformers writes the labels, not their number, and means two when it writes neither.
    num_labels = int(config.get("num_labels") or len(config.get("id2label") or "01"))
    if num_labels != 1:
        raise ModelError(f"{architecture} has {num_labels} labels; only one, a score, is supported")
    return architecture, family, RewardHead.LINEAR


def _refuse_unsupported(config: dict[str, Any], architecture: str) -> None:
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise ModelError(f"{architecture} with hidden_act {activation!r} is not supported; silu is")


def _quantization(config: dict[str, Any], architecture: str, family: Family) -> Quantization | None:
    said = config.get("quantization_config")
    if not said:
        return None
    if family.names is TensorNames.INTERNLM2:
        raise ModelError(f"quantized weights of {architecture} are not supported; use its float weights")
    return Quantization.from_config(said)


def _sliding_windows(config: dict[str, Any], family: Family, num_layers: int) -> tuple[int | None, ...]:
    window = config.get("sliding_window", family.sliding_window)
    if family.sliding_window is None or window is None:
        return (None,) * num_layers
    if not family.windowed_by_layer:
        return (int(window),) * num_layers
    if not config.get("use_sliding_window", False):
        return (None,) * num_layers
    layer_types = config.get("layer_types") or [
        "sliding_attention" if layer >= int(config.get("max_window_layers", 28)) else "full_attention"
        for layer in range(num_layers)
    ]
    if len(layer_types) != num_layers or not set(layer_types) <= {"sliding_attention", "full_attention"}:
        raise ModelError(f"layer_types {layer_types} do not say full or sliding attention for {num_layers} layers")
    return tuple(int(window) if kind == "sliding_attention" else None for kind in layer_types)


def _dtype(config: dict[str, Any]) -> str:
    said = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    if said not in ("float32", "bfloat16", "float16"):
        raise ModelError(f"weights of type {said} are not supported; float32, bfloat16 and float16 are")
    return said


def _token_ids(said: int | list[int] | None) -> tuple[int, ...]:
    if said is None:
        return ()
    return tuple(said) if isinstance(said, list) else (int(said),)
