"""Architectures without a family of ours: what transformers generates, however it is cut, or a refusal by name."""

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.kv_pool import KVLayout, KVPool
from engine.loading import _foreign
from engine.model_config import ModelConfig
from engine.model_runner import ModelRunner, PrefillChunk
from engine.tensor_parallel import WHOLE, Shard
from engine.transformers_model import _window_of, load_transformers_model
from engine.weights import load_model
from errors import ConfigError, ModelError
from settings.loading import load_settings
from tests.tiny_models import FOREIGN, greedy, prefill_all, prompts, sequences_for, tiny_model, transformers_greedy

CPU = torch.device("cpu")
NUM_TOKENS = 24
PROMPTS = prompts(count=5, longest=45)


def runner_of(path: Path, dtype: torch.dtype | None = None) -> ModelRunner:
    config = ModelConfig.from_dir(path)
    assert config.is_foreign
    model = load_transformers_model(path, config, dtype, CPU)
    layout = KVLayout(config.num_layers, config.num_kv_heads, 16, config.head_dim, model.dtype)
    return ModelRunner(model, KVPool.allocate(layout, 256))


@functools.cache
def tiny(name: str) -> ModelRunner:
    return runner_of(tiny_model(name).path)


@functools.cache
def expected(name: str) -> list[list[int]]:
    return [transformers_greedy(tiny_model(name).path, prompt, NUM_TOKENS) for prompt in PROMPTS]


@pytest.mark.parametrize("token_budget", [512, 7])
@pytest.mark.parametrize("name", FOREIGN)
def test_greedy_tokens_are_those_of_transformers(name: str, token_budget: int) -> None:
    assert greedy(tiny(name), PROMPTS, NUM_TOKENS, token_budget) == expected(name)
    assert all(len(set(row)) > 3 for row in expected(name)), "a degenerate model proves nothing"


def test_windows_are_those_of_the_masks() -> None:
    assert tiny("olmo3").model.config.sliding_windows == (13, 13, None)
    assert tiny("granite").model.config.sliding_windows == (None, None, None)


@pytest.mark.parametrize("name", ["olmo3", "granite"])
def test_shared_prefix_blocks_are_as_good_as_computed_ones(name: str) -> None:
    runner = tiny(name)
    first, second = sequences_for(runner, [PROMPTS[1], PROMPTS[1]], NUM_TOKENS)
    prefill_all(runner, [first], token_budget=512)
    second.block_table[:2] = first.block_table[:2]
    second.num_computed_tokens = 32
    (sampled,) = runner.prefill([PrefillChunk(second, second.num_tokens - 32)])
    assert sampled is not None
    second.token_ids.append(sampled.token_id)
    for _ in range(NUM_TOKENS - 1):
        second.token_ids.append(runner.decode([second])[0].token_id)
    assert second.output_token_ids == expected(name)[1]


def test_half_precision_runs() -> None:
    tokens = greedy(runner_of(tiny_model("olmo3").path, torch.bfloat16), PROMPTS[:2], 4)
    assert all(len(row) == 4 for row in tokens)


def changed(tmp_path: Path, name: str = "granite", **values: Any) -> Path:
    path = tmp_path / "changed"
    shutil.copytree(tiny_model(name).path, path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | values))
    return path


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architectures": ["NobodysForCausalLM"]}, "neither pdq nor transformers [0-9.]+ has it"),
        ({"architectures": ["NobodysForCausalLM"], "auto_map": {"AutoConfig": "a.B"}}, "code of its own .auto_map."),
        (
            {"architectures": ["MambaForCausalLM"], "model_type": "mamba"},
            "MambaForCausalLM keeps what it has read else",
        ),
        (
            {"architectures": ["BloomForCausalLM"], "model_type": "bloom"},
            "BloomForCausalLM keeps what it has read else",
        ),
        (
            {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5"},
            "T5ForConditionalGeneration is not supp",
        ),
        ({"is_encoder_decoder": True}, "GraniteForCausalLM has an encoder"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "GraniteForCausalLM has quantized weights"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        ModelConfig.from_dir(changed(tmp_path, **values))


@pytest.mark.parametrize(
    ("changes", "shard", "message"),
    [
        ({}, Shard(0, 2), "TENSOR_PARALLEL = 2: GraniteForCausalLM runs through transformers, .*; set it to 1"),
        ({"weights": "int8"}, WHOLE, "PDQ_MODEL__WEIGHTS=int8: GraniteForCausalLM runs .*; set it to auto"),
    ],
)
def test_what_transformers_does_not_do_is_said_at_start(changes: dict[str, str], shard: Shard, message: str) -> None:
    path = tiny_model("granite").path
    settings = load_settings({"model": {"path": str(path), **changes}})
    with pytest.raises(ConfigError, match=message):
        _foreign(settings, shard, path, ModelConfig.from_dir(path), None, CPU, lambda text: None)


def test_our_own_decoder_is_not_tried_on_it() -> None:
    with pytest.raises(ModelError, match="GraniteForCausalLM runs through transformers"):
        load_model(tiny_model("granite").path, None, CPU)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = changed(tmp_path, num_hidden_layers=4)
    with pytest.raises(ModelError, match="weights do not fit GraniteForCausalLM; missing keys: .*layers.3"):
        load_transformers_model(path, ModelConfig.from_dir(path), None, CPU)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpt_oss", r"GptOssForCausalLM asks for \['s_aux'\] in attention"),
        ("deepseek_v3", r"DeepseekV3ForCausalLM: heads of attention are "),
    ],
)
def test_attention_that_ours_is_not_is_refused(name: str, message: str) -> None:
    path = tiny_model(name).path
    with pytest.raises(ModelError, match=message):
        load_transformers_model(path, ModelConfig.from_dir(path), None, CPU)


def test_a_mask_that_is_no_window_is_refused() -> None:
    from transformers.masking_utils import chunked_causal_mask_function, sliding_window_causal_mask_function

    assert int(_window_of(sliding_window_causal_mask_function(7), local_size=7)) == 7
    with pytest.raises(ModelError, match="neither causal nor a sliding window"):
        _window_of(chunked_causal_mask_function(7, torch.zeros(1, dtype=torch.int64)), local_size=7)


def test_a_model_whose_state_is_not_all_in_attention_fails_its_trial() -> None:
    path = tiny_model("granite").path
    from transformers.models.granite.modeling_granite import GraniteMLP

    plain = GraniteMLP.forward

    def sees_its_neighbours(self: Any, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = plain(self, x + x.roll(1, dims=1))  # as a convolution over tokens would
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GraniteMLP, "forward", sees_its_neighbours)
        with pytest.raises(ModelError, match="GraniteForCausalLM is not computed over paged attention as transf"):
            load_transformers_model(path, ModelConfig.from_dir(path), None, CPU)
