"""What the configs say is understood, or refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.families import Residual
from engine.model_config import ModelConfig, RewardHead, TensorNames
from engine.rope_scaling import RopeScaling
from errors import ModelError

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 60,
    "intermediate_size": 70,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
    "eos_token_id": 7,
}
GPT2: dict[str, Any] = {"architectures": ["GPT2LMHeadModel"]}
GEMMA3: dict[str, Any] = {"architectures": ["Gemma3ForCausalLM"]}
PHI3: dict[str, Any] = {"architectures": ["Phi3ForCausalLM"]}
MIXTRAL: dict[str, Any] = {"architectures": ["MixtralForCausalLM"]}


def parse(tmp_path: Path, generation: dict[str, Any] | None = None, **changes: Any) -> ModelConfig:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | changes))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    return ModelConfig.from_dir(tmp_path)


def test_plain_llama(tmp_path: Path) -> None:
    config = parse(tmp_path)
    assert (config.num_layers, config.num_heads, config.num_kv_heads, config.head_dim) == (4, 6, 2, 10)
    assert config.sliding_windows == (None,) * 4
    assert (config.dtype, config.eos_token_ids, config.max_position_embeddings) == ("bfloat16", (7,), 128)
    assert not (config.qkv_bias or config.output_bias or config.mlp_bias or config.qk_norm or config.is_reward)


def test_heads_need_not_be_shared(tmp_path: Path) -> None:
    assert parse(tmp_path, num_key_value_heads=None).num_kv_heads == 6


@pytest.mark.parametrize(
    ("generation", "in_config", "wanted"),
    [
        ({"eos_token_id": [2, 3], "top_p": 0.9}, 7, (2, 3)),
        ({"eos_token_id": 0}, 7, (0,)),
        ({"top_p": 0.9}, [5, 6], (5, 6)),
        (None, None, ()),
    ],
)
def test_eos_is_generation_configs_first(
    tmp_path: Path, generation: dict[str, Any] | None, in_config: Any, wanted: tuple[int, ...]
) -> None:
    config = parse(tmp_path, generation, eos_token_id=in_config)
    assert config.eos_token_ids == wanted
    assert config.generation_defaults == (generation or {})


def test_both_spellings_of_rope_are_one(tmp_path: Path) -> None:
    old = parse(tmp_path, rope_theta=5e5, rope_scaling={"type": "linear", "factor": 2.0})
    new = parse(tmp_path, rope_parameters={"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0})
    assert old.rope == new.rope
    assert new.rope is not None and (new.rope.theta, new.rope.factor) == (5e5, 2.0)


def test_yarn_stretches_the_context_that_its_config_may_still_state(tmp_path: Path) -> None:
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    assert parse(tmp_path, rope_scaling=scaling).max_position_embeddings == 512


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 3.0},
        {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 2.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        {"rope_type": "yarn", "factor": 2.0, "beta_fast": 8, "beta_slow": 2, "truncate": False},
        {"rope_type": "yarn", "factor": 2.0, "mscale": 0.7, "mscale_all_dim": 1.1},
        {"rope_type": "longrope", "factor": 4.0, "short_factor": [1.0 + i for i in range(16)]},
    ],
    ids=str,
)
def test_frequencies_are_those_of_transformers(rope: dict[str, Any]) -> None:
    import transformers
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    said = {"rope_theta": 5e4, "original_max_position_embeddings": 256} | rope
    if rope["rope_type"] == "longrope":
        said["long_factor"] = said["short_factor"]
    if rope["rope_type"] == "llama3":
        said = {"low_freq_factor": 1.0, "high_freq_factor": 4.0} | said
    ours = RopeScaling.from_config({"rope_parameters": said}, max_positions=256)
    config = transformers.LlamaConfig(
        hidden_size=128, num_attention_heads=4, max_position_embeddings=256, rope_parameters=dict(said)
    )
    if rope["rope_type"] == "default":
        wanted, factor = 1 / 5e4 ** (torch.arange(0, 32, 2) / 32), 1.0
    else:
        wanted, factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config)
    torch.testing.assert_close(ours.inverse_frequencies(32), wanted, rtol=1e-6, atol=0)
    assert ours.attention_factor == pytest.approx(factor)


def test_windows_by_layer(tmp_path: Path) -> None:
    qwen: dict[str, Any] = {"architectures": ["Qwen2ForCausalLM"], "sliding_window": 9, "max_window_layers": 3}
    assert parse(tmp_path, **qwen).sliding_windows == (None,) * 4, "use_sliding_window is false by default"
    assert parse(tmp_path, **qwen, use_sliding_window=True).sliding_windows == (None, None, None, 9)
    layer_types = ["sliding_attention", "full_attention"] * 2
    assert parse(tmp_path, **qwen, use_sliding_window=True, layer_types=layer_types).sliding_windows == (9, None) * 2


def test_mistrals_window(tmp_path: Path) -> None:
    mistral: dict[str, Any] = {"architectures": ["MistralForCausalLM"]}
    assert parse(tmp_path, **mistral).sliding_windows == (4096,) * 4, "transformers' default"
    assert parse(tmp_path, **mistral, sliding_window=None).sliding_windows == (None,) * 4
    assert parse(tmp_path, **mistral, sliding_window=9).sliding_windows == (9,) * 4


def test_gemmas_as_transformers_4_wrote_them(tmp_path: Path) -> None:
    """Configs of that time leave out what is the family's default."""
    gemma2 = parse(tmp_path, architectures=["Gemma2ForCausalLM"], sliding_window=9)
    assert gemma2.sliding_windows == (9, None, 9, None)
    assert (gemma2.attention_cap, gemma2.logit_cap, gemma2.attention_scale) == (50.0, 30.0, 256**-0.5)
    assert gemma2.tie_word_embeddings and gemma2.local_rope is None and gemma2.embedding_scale == 60**0.5
    rope: dict[str, Any] = {"rope_theta": 5e5, "rope_local_base_freq": 2e3}
    old: dict[str, Any] = {"sliding_window_pattern": 3, "sliding_window": 9} | rope
    gemma3 = parse(tmp_path, **GEMMA3, **old, rope_scaling={"rope_type": "linear", "factor": 8.0})
    assert gemma3.sliding_windows == (9, 9, None, 9)
    assert gemma3.rope is not None and gemma3.local_rope is not None
    assert (gemma3.rope.theta, gemma3.rope.factor, gemma3.local_rope.theta) == (5e5, 8.0, 2e3)
    assert gemma3.local_rope.rope_type == "default" and gemma3.attention_cap is None


def test_gpt2s_words(tmp_path: Path) -> None:
    words: dict[str, Any] = {"n_embd": 48, "n_head": 4, "n_layer": 2, "n_positions": 77, "n_inner": None}
    config = parse(tmp_path, **GPT2, **words, num_key_value_heads=2)
    assert (config.hidden_size, config.num_heads, config.num_kv_heads, config.num_layers) == (48, 4, 4, 2)
    assert (config.intermediate_size, config.max_position_embeddings, config.rope) == (192, 77, None)


def test_neox_as_transformers_4_wrote_it(tmp_path: Path) -> None:
    neox: dict[str, Any] = {"architectures": ["GPTNeoXForCausalLM"], "rotary_pct": 0.5, "rotary_emb_base": 500}
    config = parse(tmp_path, **neox, hidden_size=96)
    assert config.rope is not None and config.rotary_dim == 8 and config.rope.theta == 500
    assert config.num_kv_heads == 6 and config.qkv_bias and config.residual is Residual.PARALLEL
    assert parse(tmp_path, **neox, hidden_size=96, use_parallel_residual=False).residual is Residual.SEQUENTIAL


def test_two_sets_of_longrope_end_where_the_first_does(tmp_path: Path) -> None:
    scaling = {"type": "su", "short_factor": [1.0] * 5, "long_factor": [2.0] * 5}
    config = parse(tmp_path, **PHI3, rope_scaling=scaling, original_max_position_embeddings=64)
    assert config.max_position_embeddings == 64 and config.rope is not None
    assert config.rope.frequency_factors == (1.0,) * 5
    scaling["long_factor"] = scaling["short_factor"]
    assert parse(tmp_path, **PHI3, rope_scaling=scaling).max_position_embeddings == 128


def test_experts_of_some_layers(tmp_path: Path) -> None:
    qwen: dict[str, Any] = {"architectures": ["Qwen3MoeForCausalLM"], "num_experts": 8, "moe_intermediate_size": 12}
    experts = parse(tmp_path, **qwen, decoder_sparse_step=2, mlp_only_layers=[3]).experts
    assert experts is not None and experts.layers == {1} and experts.shared_intermediate_size == 0
    mixtral = parse(tmp_path, **MIXTRAL).experts
    assert mixtral is not None and mixtral.is_normalized and mixtral.intermediate_size == 70
    assert parse(tmp_path).experts is None


def test_families_differ_in_biases_and_norms(tmp_path: Path) -> None:
    qwen2 = parse(tmp_path, architectures=["Qwen2ForCausalLM"])
    assert (qwen2.qkv_bias, qwen2.output_bias, qwen2.qk_norm) == (True, False, False)
    qwen3 = parse(tmp_path, architectures=["Qwen3ForCausalLM"])
    assert (qwen3.qkv_bias, qwen3.qk_norm, qwen3.head_dim) == (False, True, 128)
    internlm2 = parse(tmp_path, architectures=["InternLM2ForCausalLM"], bias=True)
    assert (internlm2.qkv_bias, internlm2.output_bias, internlm2.names) == (True, True, TensorNames.INTERNLM2)


@pytest.mark.parametrize(
    ("changes", "head"),
    [
        ({"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "LABEL_0"}}, RewardHead.LINEAR),
        ({"architectures": ["Qwen3ForSequenceClassification"], "num_labels": 1}, RewardHead.LINEAR),
        ({"architectures": ["InternLM2ForRewardModel"]}, RewardHead.VALUE),
        ({"architectures": ["Qwen2ForRewardModel"]}, RewardHead.TWO_LAYER),
    ],
)
def test_reward_models_are_told_by_architecture(tmp_path: Path, changes: dict[str, Any], head: RewardHead) -> None:
    config = parse(tmp_path, **changes)
    assert config.is_reward
    assert config.reward_head is head


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["Gemma3ForConditionalGeneration"]},
            r"Generation is not supported; LlamaForCausalLM",
        ),
        ({"architectures": ["Gemma2ForSequenceClassification"]}, r"of reward models InternLM2ForRewardModel"),
        ({"architectures": None}, r"none named"),
        ({"architectures": ["LlamaForRewardModel"]}, r"of reward models InternLM2ForRewardModel"),
        ({"architectures": ["LlamaForSequenceClassification"]}, r"2 labels; only one"),
        ({"hidden_act": "quick_gelu"}, r"hidden_act 'quick_gelu' is not supported; silu, "),
        (GPT2 | {"scale_attn_by_inverse_layer_idx": True}, r"scale_attn_by_inverse_layer_idx True is not .*; False is"),
        (GEMMA3 | {"attn_logit_softcapping": 50.0}, r"attn_logit_softcapping 50.0 is not supported; none at all is"),
        (
            GEMMA3 | {"use_bidirectional_attention": True},
            r"use_bidirectional_attention True is not .*; False is",
        ),
        (GEMMA3 | {"rope_parameters": {"rope_type": "linear"}}, r"full_attention and sliding_attention are its keys"),
        (GEMMA3 | {"final_logit_softcapping": -1.0}, r"final_logit_softcapping -1.0 is not supported; it must be more"),
        (PHI3 | {"partial_rotary_factor": 0.5, "head_dim": 10}, r"5 rotated dimensions of 10 are no pairs"),
        (PHI3 | {"partial_rotary_factor": 1.5}, r"partial_rotary_factor 1.5 is not supported; .* at most 1"),
        (PHI3 | {"quantization_config": {"quant_method": "fp8"}}, r"quantized weights of Phi3ForCausalLM"),
        (MIXTRAL | {"quantization_config": {"quant_method": "fp8"}}, r"quantized weights of MixtralForCausalLM"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, r"needs a short_factor and a long_factor"),
        (MIXTRAL | {"num_experts_per_tok": 9}, r"num_experts_per_tok 9 is not supported; there are 8 experts"),
        ({"architectures": ["Qwen2MoeForCausalLM"], "use_sliding_window": True}, r"supported without layer_types"),
        ({"quantization_config": {"quant_method": "hqq"}}, r"quant_method 'hqq' are not supported; 'fp8' or"),
        ({"rope_scaling": {"type": "su"}}, r"rope type 'su' is not supported; default, linear"),
        ({"rope_scaling": {"type": "linear"}}, r"'linear' needs a factor"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, r"differ between layer types"),
        ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor"),
        ({"num_key_value_heads": 4}, r"6 attention heads cannot share 4"),
        ({"torch_dtype": "float8_e4m3fn"}, r"type float8_e4m3fn are not supported"),
        ({"hidden_size": None}, r"not a config of a supported model"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        parse(tmp_path, **changes)


def test_unreadable_configs(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot read .*config.json"):
        ModelConfig.from_dir(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="is not JSON"):
        ModelConfig.from_dir(tmp_path)
