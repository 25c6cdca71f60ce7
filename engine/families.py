"""The families that `engine/model.py` computes, as data: what each is made of, and what its config leaves unsaid.

A new family is a row of FAMILIES, and a row of LAYOUTS (`engine/tensor_names.py`) where its tensors have other names.
Sources: the modeling and configuration files of transformers 5.23. Knows no tensors and no files.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class TensorNames(StrEnum):
    """Whose tensor names a checkpoint uses."""

    LLAMA = "llama"
    INTERNLM2 = "internlm2"  # query, key and value of a group of heads interleaved in one wqkv
    GEMMA = "gemma"  # Llama's, with two more norms
    PHI3 = "phi3"  # queries, keys and values in one matrix, gate and up in another
    GPT_NEOX = "gpt_neox"
    GPT2 = "gpt2"  # weights [in, out]
    MIXTRAL = "mixtral"
    IDEFICS3 = "idefics3"  # Llama's below another prefix


class Norm(StrEnum):
    """What normalizes the residual stream."""

    RMS = "rms"
    RMS_PLUS_ONE = "rms_plus_one"  # the checkpoint has weights minus one
    LAYER = "layer"  # with mean and bias


class Residual(StrEnum):
    """How attention and MLP hang on the residual stream."""

    SEQUENTIAL = "sequential"  # a norm before each of the two
    SANDWICH = "sandwich"  # and one after each, before it is added
    PARALLEL = "parallel"  # both read the same stream and are added together


class Activation(StrEnum):
    """The MLP's nonlinearity."""

    SILU = "silu"
    GELU = "gelu"
    GELU_TANH = "gelu_tanh"
    RELU = "relu"


# The config's word for each.
ACTIVATIONS = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu": Activation.GELU,
    "gelu_python": Activation.GELU,
    "gelu_new": Activation.GELU_TANH,
    "gelu_fast": Activation.GELU_TANH,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "relu": Activation.RELU,
}


class Windows(StrEnum):
    """Which layers see only the last `sliding_window` tokens."""

    NONE = "none"
    ALL = "all"
    QWEN = "qwen"  # none without use_sliding_window; by layer_types, else those from max_window_layers on
    QWEN_ALL = "qwen_all"  # none without use_sliding_window, else all
    BY_TYPE = "by_type"  # by layer_types, else all but every sliding_window_pattern-th


@dataclass(frozen=True, slots=True)
class Family:
    """What architectures of one name stem share."""

    names: TensorNames = TensorNames.LLAMA
    norm: Norm = Norm.RMS
    residual: Residual = Residual.SEQUENTIAL
    windows: Windows = Windows.NONE
    is_gated: bool = True  # activation(gate) * up; else activation(up)
    qkv_bias: bool | None = None  # None: the config says
    output_bias: bool | None = None  # None: the config says
    mlp_bias: bool | None = None  # None: the config says
    bias_key: str = "attention_bias"  # the config's word for the first two
    norm_eps_key: str = "rms_norm_eps"
    activation_key: str = "hidden_act"
    qk_norm: bool = False
    scales_embedding: bool = False  # by sqrt(hidden_size)
    has_positions: bool = False  # learned ones, added to the embedding; nothing is rotated
    rotates_partly: bool = False  # partial_rotary_factor may be less than 1
    has_local_rope: bool = False  # windowed layers rotate with frequencies of their own
    has_experts: bool = False
    has_rewards: bool = False  # *ForSequenceClassification with one label is supported
    defaults: Mapping[str, Any] = field(default_factory=dict)  # of keys that config.json may leave out
    renamed: Mapping[str, str] = field(default_factory=dict)  # the family's word for a key -> ours
    foreign: frozenset[str] = frozenset()  # keys that mean nothing in this family
    wanted: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)  # keys of which we compute only these values

    def said(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """config.json in our words, with the family's defaults."""
        kept = {key: value for key, value in config.items() if key not in self.foreign}
        own = {ours: kept.pop(theirs) for theirs, ours in self.renamed.items() if theirs in kept}
        return {**self.defaults, **kept, **own}


_NO_BIAS: dict[str, Any] = {"qkv_bias": False, "output_bias": False}
_GEMMA: dict[str, Any] = {
    "names": TensorNames.GEMMA,
    "norm": Norm.RMS_PLUS_ONE,
    "residual": Residual.SANDWICH,
    "windows": Windows.BY_TYPE,
    "activation_key": "hidden_activation",
    "scales_embedding": True,
}
_GEMMA_DEFAULTS: dict[str, Any] = {
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "head_dim": 256,
    "sliding_window": 4096,
}
_TEXT_ONLY: dict[str, tuple[Any, ...]] = {"use_bidirectional_attention": (None, False)}
_EXPERTS: dict[str, Any] = {"mlp_bias": False, "has_experts": True, "renamed": {"num_local_experts": "num_experts"}}

FAMILIES = {
    "Llama": Family(has_rewards=True),
    "Mistral": Family(**_NO_BIAS, windows=Windows.ALL, has_rewards=True, defaults={"sliding_window": 4096}),
    "Qwen2": Family(
        qkv_bias=True,
        output_bias=False,
        windows=Windows.QWEN,
        has_rewards=True,
        defaults={"sliding_window": 4096, "max_window_layers": 28},
    ),
    "Qwen3": Family(
        qk_norm=True,
        windows=Windows.QWEN,
        has_rewards=True,
        defaults={"head_dim": 128, "sliding_window": 4096, "max_window_layers": 28},
    ),
    "InternLM2": Family(names=TensorNames.INTERNLM2, bias_key="bias", has_rewards=True),
    "Gemma2": Family(
        **_GEMMA,
        defaults=_GEMMA_DEFAULTS
        | {"sliding_window_pattern": 2, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        wanted=_TEXT_ONLY,
    ),
    "Gemma3": Family(
        **_GEMMA,
        qk_norm=True,
        has_local_rope=True,
        defaults=_GEMMA_DEFAULTS
        | {
            "sliding_window_pattern": 6,
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
            "max_position_embeddings": 131072,
        },
        wanted=_TEXT_ONLY | {"attn_logit_softcapping": (None,)},
    ),
    "Phi3": Family(
        **_NO_BIAS,
        names=TensorNames.PHI3,
        mlp_bias=False,
        windows=Windows.ALL,
        rotates_partly=True,
        defaults={"sliding_window": None},
    ),
    "GPTNeoX": Family(
        names=TensorNames.GPT_NEOX,
        norm=Norm.LAYER,
        residual=Residual.PARALLEL,
        is_gated=False,
        mlp_bias=True,
        norm_eps_key="layer_norm_eps",
        rotates_partly=True,
        defaults={
            "attention_bias": True,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-5,
            "partial_rotary_factor": 0.25,
            "use_parallel_residual": True,
        },
        renamed={"rotary_pct": "partial_rotary_factor", "rotary_emb_base": "rope_theta"},
        foreign=frozenset({"num_key_value_heads", "head_dim"}),
    ),
    "GPT2": Family(
        names=TensorNames.GPT2,
        norm=Norm.LAYER,
        is_gated=False,
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        norm_eps_key="layer_norm_epsilon",
        activation_key="activation_function",
        has_positions=True,
        defaults={
            "tie_word_embeddings": True,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5,
            "max_position_embeddings": 1024,
            "intermediate_size": None,
        },
        renamed={
            "n_embd": "hidden_size",
            "n_head": "num_attention_heads",
            "n_layer": "num_hidden_layers",
            "n_positions": "max_position_embeddings",
            "n_inner": "intermediate_size",
        },
        foreign=frozenset({"num_key_value_heads", "head_dim", "intermediate_size"}),
        wanted={
            "scale_attn_weights": (None, True),
            "scale_attn_by_inverse_layer_idx": (None, False),
            "add_cross_attention": (None, False),
        },
    ),
    "Mixtral": Family(
        **_NO_BIAS,
        **_EXPERTS,
        names=TensorNames.MIXTRAL,
        windows=Windows.ALL,
        defaults={
            "sliding_window": None,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e6,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "norm_topk_prob": True,
        },
    ),
    "Qwen2Moe": Family(
        **_EXPERTS,
        output_bias=False,
        bias_key="qkv_bias",
        windows=Windows.QWEN,
        defaults={
            "qkv_bias": True,
            "sliding_window": 4096,
            "num_experts": 60,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632,
        },
    ),
    "Idefics3": Family(names=TensorNames.IDEFICS3),  # and SmolVLM: the text part of a model that reads images
    "Qwen3Moe": Family(
        **_EXPERTS,
        qk_norm=True,
        windows=Windows.QWEN_ALL,
        defaults={"sliding_window": 4096, "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768},
    ),
}
# Architectures whose names are not <family>For<what>.
SPECIAL_NAMES = {
    "GPT2LMHeadModel": ("GPT2", "CausalLM"),
    "Idefics3ForConditionalGeneration": ("Idefics3", "CausalLM"),
    "SmolVLMForConditionalGeneration": ("Idefics3", "CausalLM"),
}
