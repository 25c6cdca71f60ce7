"""What config.json and generation_config.json say about a model, in our words, checked before a weight is read.

A family is a row of a table (`engine/families.py`). Whatever the decoder of `engine/model.py` cannot compute exactly is
refused here by name; architectures without a row are left to transformers' own code (`engine/transformers_config.py`).
Knows no tensors.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from engine.families import ACTIVATIONS, FAMILIES, SPECIAL_NAMES, Activation, Family, Norm, Residual, TensorNames
from engine.layer_config import ExpertShape, experts_of, ropes_of, sliding_windows_of
from engine.quantization import Quantization
from engine.rope_scaling import RopeScaling
from images import ARCHITECTURES as WITH_IMAGES
from messages import ModelError

__all__ = ["ExpertShape", "ModelConfig", "RewardHead", "TensorNames"]


class RewardHead(StrEnum):
    """What a reward model has in place of the language head; one number comes out."""

    LINEAR = "linear"  # score.weight, of *ForSequenceClassification with one label
    VALUE = "value"  # v_head.weight, of InternLM2
    TWO_LAYER = "two_layer"  # score.0 -> ReLU -> score.2, of Qwen2


_NO_STEMS = {stem for stem, _ in SPECIAL_NAMES.values()}
SUPPORTED = (
    ", ".join(f"{stem}ForCausalLM" for stem in FAMILIES if stem not in _NO_STEMS) + ", " + ", ".join(SPECIAL_NAMES)
)
_SCORED = "/".join(stem for stem, family in FAMILIES.items() if family.has_rewards)
SUPPORTED_REWARDS = (
    f"InternLM2ForRewardModel, Qwen2ForRewardModel and *ForSequenceClassification with one label of {_SCORED}"
)


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
    norm_eps: float
    rope: RopeScaling | None  # None: positions are learned
    max_position_embeddings: int  # most tokens of a sequence, rope scaling included
    sliding_windows: tuple[int | None, ...]  # per layer; None: sees everything before it
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    tie_word_embeddings: bool
    dtype: str  # of the checkpoint, quantized weights apart: float32, bfloat16 or float16
    eos_token_ids: tuple[int, ...]
    norm: Norm = Norm.RMS
    residual: Residual = Residual.SEQUENTIAL
    activation: Activation = Activation.SILU
    is_gated: bool = True
    local_rope: RopeScaling | None = None  # of the layers with a window, where it is another one
    attention_scale: float = 1.0  # what queries times keys are multiplied by
    attention_cap: float | None = None  # c: scores become c * tanh(scores / c)
    logit_cap: float | None = None  # the same for logits
    embedding_scale: float = 1.0
    experts: ExpertShape | None = None
    reward_head: RewardHead | None = None
    quantization: Quantization | None = None
    reward_token_id: int | None = None  # the token at which the reward is read, where the config names one
    generation_defaults: dict[str, Any] = field(default_factory=dict)  # generation_config.json as it stands
    image_token_id: int | None = None  # stands for an image's features in a prompt; None: there are no images
    is_foreign: bool = False  # transformers' own code computes it; what only our decoder reads is at its default

    @property
    def is_reward(self) -> bool:
        """Whether the model answers with a score, not with tokens."""
        return self.reward_head is not None

    @property
    def reads_images(self) -> bool:
        """Whether a prompt may hold images."""
        return self.image_token_id is not None

    @property
    def rotary_dim(self) -> int:
        """How many dimensions of a head are rotated."""
        return self.head_dim if self.rope is None else self.rope.rotary_dim(self.head_dim)

    @classmethod
    def from_dir(cls, path: Path) -> "ModelConfig":
        """Read the directory's configs. Raises ModelError naming what is missing or not supported."""
        config = _read_json(path / "config.json")
        generation = _read_json(path / "generation_config.json") if (path / "generation_config.json").exists() else {}
        try:
            if _is_foreign(config):
                from engine.transformers_config import foreign_config  # seconds to import, and only these models pay

                return foreign_config(path, config, generation)
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


def _named(config: Mapping[str, Any]) -> tuple[str, str, str]:
    """The architecture, the family's name and what the model is for."""
    architecture = str((config.get("architectures") or ["(none named)"])[0])
    stem, _, kind = architecture.partition("For")
    return architecture, *SPECIAL_NAMES.get(architecture, (stem, kind))


def _is_foreign(config: Mapping[str, Any]) -> bool:
    """Whether the model may be one that transformers computes for us."""
    architecture, stem, kind = _named(config)
    return stem not in FAMILIES and (kind == "CausalLM" or architecture.endswith("LMHeadModel"))


def _text_config(config: dict[str, Any], architecture: str) -> dict[str, Any]:
    """What a model of images and text says of its text part."""
    text: dict[str, Any] = config["text_config"]
    if text.get("model_type") != "llama":
        raise ModelError(f"{architecture} with a text model {text.get('model_type')!r} is not supported; 'llama' is")
    # What the text part says of it is not what transformers reads.
    outer = {"tie_word_embeddings": config.get("tie_word_embeddings", False)}
    dtype = config.get("dtype") or config.get("torch_dtype") or text.get("dtype") or text.get("torch_dtype")
    eos = {"eos_token_id": config["eos_token_id"]} if config.get("eos_token_id") is not None else {}
    return text | outer | eos | {"dtype": dtype, "quantization_config": config.get("quantization_config")}


def _parse(config: dict[str, Any], generation: dict[str, Any]) -> ModelConfig:
    architecture, family, reward_head = _architecture(config)
    image_token_id = None
    if architecture in WITH_IMAGES:
        image_token_id = int(config["image_token_id"])
        config = _text_config(config, architecture)
    config = family.said(config)
    for key, wanted in family.wanted.items():
        if config.get(key) not in wanted:
            computed = " or ".join(repr(value) for value in wanted if value is not None) or "none at all"
            raise ModelError(f"{architecture} with {key} {config[key]!r} is not supported; {computed} is")
    num_layers, num_heads = int(config["num_hidden_layers"]), int(config["num_attention_heads"])
    num_kv_heads = int(config.get("num_key_value_heads") or num_heads)
    hidden_size = int(config["hidden_size"])
    head_dim = int(config.get("head_dim") or hidden_size // num_heads)
    if num_heads % num_kv_heads:
        raise ModelError(f"{num_heads} attention heads cannot share {num_kv_heads} key-value heads evenly")
    if head_dim % 2 and not family.has_positions:
        raise ModelError(f"head_dim {head_dim} is odd; rotary embedding takes pairs")
    max_positions = int(config["max_position_embeddings"])
    rope, local_rope = ropes_of(config, family, max_positions)
    if rope is not None:
        rope.rotary_dim(head_dim)  # or it says why not
    bias = bool(config.get(family.bias_key, False))
    eos = generation.get("eos_token_id")
    runs_apart = family.residual is Residual.PARALLEL and not config.get("use_parallel_residual", True)
    return ModelConfig(
        architecture=architecture,
        names=family.names,
        vocab_size=int(config["vocab_size"]),
        hidden_size=hidden_size,
        intermediate_size=_intermediate_size(config, hidden_size),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        norm_eps=float(config.get(family.norm_eps_key, 1e-6)),
        rope=rope,
        max_position_embeddings=max_positions if rope is None else rope.max_context_tokens(max_positions),
        sliding_windows=sliding_windows_of(config, family, architecture, num_layers),
        qkv_bias=bias if family.qkv_bias is None else family.qkv_bias,
        output_bias=bias if family.output_bias is None else family.output_bias,
        mlp_bias=bool(config.get("mlp_bias", False)) if family.mlp_bias is None else family.mlp_bias,
        qk_norm=family.qk_norm,
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        dtype=_dtype(config),
        eos_token_ids=_token_ids(config.get("eos_token_id") if eos is None else eos),
        norm=family.norm,
        residual=Residual.SEQUENTIAL if runs_apart else family.residual,
        activation=_activation(config, family, architecture),
        is_gated=family.is_gated,
        local_rope=local_rope,
        attention_scale=float(config.get("query_pre_attn_scalar") or head_dim) ** -0.5,
        attention_cap=_cap(config, "attn_logit_softcapping"),
        logit_cap=_cap(config, "final_logit_softcapping"),
        embedding_scale=hidden_size**0.5 if family.scales_embedding else 1.0,
        experts=experts_of(config, num_layers) if family.has_experts else None,
        reward_head=reward_head,
        quantization=_quantization(config, architecture, family),
        reward_token_id=config.get("reward_token_id"),
        generation_defaults=generation,
        image_token_id=image_token_id,
    )


def _architecture(config: dict[str, Any]) -> tuple[str, Family, RewardHead | None]:
    architecture, stem, kind = _named(config)
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
    if not family.has_rewards:
        raise ModelError(f"architecture {architecture} is not supported; of reward models {SUPPORTED_REWARDS} are")
    # transformers writes the labels, not their number, and means two when it writes neither.
    num_labels = int(config.get("num_labels") or len(config.get("id2label") or "01"))
    if num_labels != 1:
        raise ModelError(f"{architecture} has {num_labels} labels; only one, a score, is supported")
    return architecture, family, RewardHead.LINEAR


def _intermediate_size(config: Mapping[str, Any], hidden_size: int) -> int:
    said = config["intermediate_size"]
    return 4 * hidden_size if said is None else int(said)  # GPT-2's n_inner may be null


def _activation(config: Mapping[str, Any], family: Family, architecture: str) -> Activation:
    said = config.get(family.activation_key, "silu")
    if said not in ACTIVATIONS:
        supported = ", ".join(ACTIVATIONS)
        raise ModelError(f"{architecture} with {family.activation_key} {said!r} is not supported; {supported} are")
    return ACTIVATIONS[said]


def _cap(config: Mapping[str, Any], key: str) -> float | None:
    said = config.get(key)
    if said is None:
        return None
    if not float(said) > 0:
        raise ModelError(f"{key} {said!r} is not supported; it must be more than 0, or null")
    return float(said)


def _quantization(config: dict[str, Any], architecture: str, family: Family) -> Quantization | None:
    said = config.get("quantization_config")
    if not said:
        return None
    if family.names is not TensorNames.LLAMA or family.has_experts:
        raise ModelError(f"quantized weights of {architecture} are not supported; use its float weights")
    return Quantization.from_config(said)


def _dtype(config: dict[str, Any]) -> str:
    said = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    if said not in ("float32", "bfloat16", "float16"):
        raise ModelError(f"weights of type {said} are not supported; float32, bfloat16 and float16 are")
    return said


def _token_ids(said: int | list[int] | None) -> tuple[int, ...]:
    if said is None:
        return ()
    return tuple(said) if isinstance(said, list) else (int(said),)
