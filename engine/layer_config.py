"""What differs from layer to layer, out of a config in our words: rotation, windows, mixtures of experts.

Raises ModelError, naming key and value, for what the decoder does not compute. Knows no tensors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.families import Family, TensorNames, Windows
from engine.rope_scaling import RopeScaling
from errors import ModelError


@dataclass(frozen=True, slots=True)
class ExpertShape:
    """A mixture of experts: which layers have one in place of their MLP, and of what shape."""

    num_experts: int
    num_chosen: int  # experts that compute a token
    intermediate_size: int  # of each
    is_normalized: bool  # the weights of a token's experts are made to add up to one
    shared_intermediate_size: int  # of the expert that computes every token; 0: there is none
    layers: frozenset[int]


def ropes_of(
    config: dict[str, Any], family: Family, max_positions: int
) -> tuple[RopeScaling | None, RopeScaling | None]:
    """Of layers that see everything, and of those with a window where it is another one."""
    if family.has_positions:
        return None, None
    if not family.has_local_rope:
        if family.names is TensorNames.PHI3:
            config = _with_longrope(config)
        return RopeScaling.from_config(config, max_positions, family.rotates_partly), None
    by_type = config.get("rope_parameters") or {}
    if not set(by_type) <= {"full_attention", "sliding_attention"}:
        raise ModelError(
            f"rope_parameters {by_type} are not supported; full_attention and sliding_attention are its keys"
        )
    theta = {"full_attention": config["rope_theta"], "sliding_attention": config["rope_local_base_freq"]}
    # transformers 4: rope_scaling is of the layers that see everything.
    scaling = {"full_attention": config.get("rope_scaling") or {}, "sliding_attention": {}}
    full, local = (
        RopeScaling.from_config(
            {"rope_parameters": {"rope_theta": theta[kind], **scaling[kind], **(by_type.get(kind) or {})}},
            max_positions,
        )
        for kind in theta
    )
    return full, local


def _with_longrope(config: dict[str, Any]) -> dict[str, Any]:
    """Phi-3's first configs say "su" or "yarn" where longrope is meant."""
    for key in ("rope_parameters", "rope_scaling"):
        said = config.get(key)
        if said and (said.get("rope_type") or said.get("type")) in ("su", "yarn"):
            return config | {key: said | {"rope_type": "longrope"}}
    return config


def experts_of(config: Mapping[str, Any], num_layers: int) -> ExpertShape:
    """The mixtures of a family that has them."""
    num_experts, num_chosen = int(config["num_experts"]), int(config["num_experts_per_tok"])
    if not 0 < num_chosen <= num_experts:
        raise ModelError(f"num_experts_per_tok {num_chosen} is not supported; there are {num_experts} experts")
    step, dense = int(config.get("decoder_sparse_step", 1)), config.get("mlp_only_layers") or []
    return ExpertShape(
        num_experts=num_experts,
        num_chosen=num_chosen,
        intermediate_size=int(config.get("moe_intermediate_size") or config["intermediate_size"]),
        is_normalized=bool(config.get("norm_topk_prob", False)),
        shared_intermediate_size=int(config.get("shared_expert_intermediate_size") or 0),
        layers=frozenset(layer for layer in range(num_layers) if layer not in dense and (layer + 1) % step == 0),
    )


def sliding_windows_of(
    config: dict[str, Any], family: Family, architecture: str, num_layers: int
) -> tuple[int | None, ...]:
    """Per layer; None: it sees everything before it."""
    window = config.get("sliding_window")
    if family.windows is Windows.NONE or window is None:
        return (None,) * num_layers
    if family.windows in (Windows.QWEN, Windows.QWEN_ALL) and not config.get("use_sliding_window", False):
        return (None,) * num_layers
    if family.windows in (Windows.ALL, Windows.QWEN_ALL):
        return (int(window),) * num_layers
    layer_types = config.get("layer_types")
    if layer_types is None and family.windows is Windows.BY_TYPE:
        pattern = int(config["sliding_window_pattern"])
        layer_types = [
            "sliding_attention" if (layer + 1) % pattern else "full_attention" for layer in range(num_layers)
        ]
    if layer_types is None:
        if "max_window_layers" not in family.defaults:
            raise ModelError(f"{architecture} with use_sliding_window true is not supported without layer_types")
        first = int(config["max_window_layers"])
        layer_types = ["sliding_attention" if layer >= first else "full_attention" for layer in range(num_layers)]
    if len(layer_types) != num_layers or not set(layer_types) <= {"sliding_attention", "full_attention"}:
        raise ModelError(f"layer_types {layer_types} do not say full or sliding attention for {num_layers} layers")
    return tuple(int(window) if kind == "sliding_attention" else None for kind in layer_types)
