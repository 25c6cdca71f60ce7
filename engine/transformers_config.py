"""Configs of architectures that transformers' own code computes (`engine/transformers_model.py`), read by transformers.

What is certain to go wrong is refused here; what only a run can show is found by the model's trial. Loaded only for a
model that has no row in `engine/families.py`. Knows no weights.
"""

from pathlib import Path
from typing import Any

import transformers

from engine.families import TensorNames
from engine.model_config import ModelConfig
from errors import ModelError


def foreign_config(model_dir: Path, config: dict[str, Any], generation: dict[str, Any]) -> ModelConfig:
    """What `ModelConfig` says of it. Raises ModelError for what transformers cannot compute over our KV pool."""
    architecture = str(config["architectures"][0])
    kind = class_of(architecture, config)
    try:
        said = transformers.AutoConfig.from_pretrained(model_dir, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"transformers cannot read the config of {architecture}: {error}") from None
    for key, wrong in (("is_encoder_decoder", "an encoder"), ("quantization_config", "quantized weights")):
        if getattr(said, key, None):
            raise ModelError(f"{architecture} has {wrong}, which transformers' own code is not given here")
    if not kind._supports_attention_backend or kind._is_stateful:
        raise ModelError(
            f"{architecture} keeps what it has read elsewhere than in keys and values of attention, or computes "
            "attention in a way of its own; a decoder of attention layers alone is supported"
        )
    num_heads, num_layers = _count(said, "num_attention_heads"), _count(said, "num_hidden_layers")
    hidden_size = _count(said, "hidden_size")
    eos = generation.get("eos_token_id", said.eos_token_id)
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    return ModelConfig(
        architecture=architecture,
        names=TensorNames.LLAMA,
        vocab_size=_count(said, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=0,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=int(getattr(said, "num_key_value_heads", None) or num_heads),
        head_dim=int(getattr(said, "head_dim", None) or hidden_size // num_heads),
        norm_eps=0.0,
        rope=None,
        max_position_embeddings=_max_positions(said),
        sliding_windows=(None,) * num_layers,
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
        qk_norm=False,
        tie_word_embeddings=bool(said.tie_word_embeddings),
        dtype=dtype,
        eos_token_ids=tuple(eos) if isinstance(eos, list) else () if eos is None else (int(eos),),
        generation_defaults=generation,
        is_foreign=True,
    )


def class_of(architecture: str, config: dict[str, Any]) -> Any:
    """transformers' class of that name. Raises ModelError where it has none."""
    kind = getattr(transformers, architecture, None)
    if kind is not None:
        return kind
    if config.get("auto_map"):
        raise ModelError(f"architecture {architecture} comes with code of its own (auto_map), which is never run here")
    raise ModelError(
        f"architecture {architecture} is not supported: neither pdq nor transformers {transformers.__version__} has it"
    )


def _count(said: Any, key: str) -> int:
    value = getattr(said, key, None)
    if not isinstance(value, int) or value < 1:
        raise ModelError(f"{said.architectures[0]} with {key} {value!r} is not supported; one number for all layers is")
    return value


def _max_positions(said: Any) -> int:
    """Positions that turn by one set of angles: longrope's second set would change keys that are cached."""
    longest = _count(said, "max_position_embeddings")
    ropes = getattr(said, "rope_parameters", None) or {}
    for rope in (ropes, *ropes.values()):
        if isinstance(rope, dict) and rope.get("rope_type") == "longrope":
            longest = min(longest, int(rope["original_max_position_embeddings"]))
    return longest
