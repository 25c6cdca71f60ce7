"""Quantized checkpoints: what configs say, and that their tensors mean the numbers that they were made from."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.kv_pool import KVLayout, KVPool
from engine.loading import load
from engine.model import Model
from engine.quantization import Quantization, WeightFormat
from engine.weights import load_model
from errors import ModelError
from kernels.ops import PrefillMeta, plain_ops
from kernels.quantized_linear import weight_only_linear
from messages.worker_status import Role
from settings.loading import Settings
from settings.model import ModelSettings
from tests.quantized_models import CONFIGS, awq_config, compressed_config, gptq_config, quantized_model

CPU = torch.device("cpu")
TOKENS = [3, 1, 4, 1, 5, 9, 26, 53, 58, 9, 7]


def logits(model: Model) -> Tensor:
    """Of all TOKENS, in one prefill."""
    config = model.config
    layout = KVLayout(config.num_layers, config.num_kv_heads, 16, config.head_dim, model.dtype)
    pool = KVPool.allocate(layout, 2)
    places = torch.arange(len(TOKENS))
    meta = PrefillMeta.of([0, len(TOKENS)], [0], [[1]], CPU)
    with torch.inference_mode():
        return model.logits(model.forward(torch.tensor(TOKENS), places, places + 16, meta, pool))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cpu_computes_with_the_dequantized_weights(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = quantized_model(name, tmp_path)
    wanted = logits(load_model(model.dense_path, dtype, CPU))
    assert wanted.std() > 0.5
    assert torch.equal(logits(load_model(model.path, dtype, CPU)), wanted)


@pytest.mark.parametrize("name", CONFIGS)
def test_where_linears_take_quantized_weights_they_stay_so(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = quantized_model(name, tmp_path)
    wanted = logits(load_model(model.dense_path, None, CPU))
    plain = plain_ops(CPU, torch.float32)
    kinds: list[str] = []

    def linear(x: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
        kinds.append(type(weight).__name__)
        return plain.linear(x, weight, bias) if isinstance(weight, Tensor) else weight_only_linear(x, weight, bias)

    ops = replace(plain, linear=linear, takes_quantized=True)
    monkeypatch.setattr("engine.weights.select_ops", lambda device, dtype: ops)
    torch.testing.assert_close(logits(load_model(model.path, None, CPU)), wanted, atol=1e-4, rtol=1e-4)
    kept = "Fp8Weight" if name.startswith("fp8") else "Int4Weight"
    # Parts that are permuted each in its own way cannot be one weight: these alone are dequantized.
    per_layer = ["Tensor", kept, "Tensor", kept] if name == "gptq_orders" else [kept] * 4
    assert kinds == [*per_layer * 2, "Tensor"], "qkv, output, gate_up and down of two layers, and the head"


def test_a_linear_that_is_not_quantized_is_taken_as_it_is(tmp_path: Path) -> None:
    model = quantized_model("awq", tmp_path)
    name = "model.layers.1.self_attn.k_proj"
    tensors = load_file(model.path / "model.safetensors")
    for kind in ("qweight", "qzeros", "scales"):
        del tensors[f"{name}.{kind}"]
    tensors[f"{name}.weight"] = load_file(model.dense_path / "model.safetensors")[f"{name}.weight"]
    save_file(tensors, model.path / "model.safetensors")
    wanted = logits(load_model(model.dense_path, None, CPU))
    assert torch.equal(logits(load_model(model.path, None, CPU)), wanted)


def test_biases_of_zeros_that_gptq_tools_write(tmp_path: Path) -> None:
    model = quantized_model("gptq", tmp_path)
    tensors = load_file(model.path / "model.safetensors")
    name = "model.layers.0.self_attn.k_proj.bias"
    save_file(tensors | {name: torch.zeros(32)}, model.path / "model.safetensors")
    load_model(model.path, None, CPU)
    save_file(tensors | {name: torch.ones(32)}, model.path / "model.safetensors")
    with pytest.raises(ModelError, match=f"no use for: .*{name}"):
        load_model(model.path, None, CPU)


def test_loading_on_a_cpu_says_that_weights_are_dequantized(tmp_path: Path) -> None:
    path = quantized_model("awq", tmp_path).path
    (path / "tokenizer.json").write_text("{}")
    said: list[str] = []
    settings = Settings(model=ModelSettings(path=str(path), device="cpu", dtype="bfloat16", cache_dir=tmp_path))
    load(settings, Role.DECODE, torch.get_num_threads(), said.append)
    assert "the awq weights are dequantized to bfloat16 on a CPU" in said


PREFIX = "model.layers.1.mlp.down_proj"
Change = Callable[[dict[str, Tensor]], object]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("awq", lambda tensors: tensors.pop(f"{PREFIX}.scales"), "lacks the tensor .*down_proj.scales"),
        ("awq", lambda tensors: tensors.pop(f"{PREFIX}.qweight"), "lacks the tensor .*down_proj.weight"),
        ("gptq", lambda tensors: tensors[f"{PREFIX}.g_idx"].zero_(), "g_idx does not put 128 inputs into every group"),
        (
            "gptq",
            lambda tensors: tensors.update({f"{PREFIX}.qweight": torch.zeros(20, 64)}),
            "down_proj.qweight is torch.float32; int32 is supported",
        ),
        (
            "fp8_block",
            lambda tensors: tensors.update({f"{PREFIX}.weight": torch.zeros(64, 160)}),
            "down_proj.weight is torch.float32; float8_e4m3fn is supported",
        ),
        (
            "fp8_channel",
            lambda tensors: tensors.update({f"{PREFIX}.weight_scale": torch.ones(63, 1)}),
            r"down_proj.weight_scale has shape \[63, 1\], config.json: \[64, 1\]",
        ),
    ],
)
def test_broken_tensors(name: str, change: Change, message: str, tmp_path: Path) -> None:
    path = quantized_model(name, tmp_path).path
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(ModelError, match=message):
        load_model(path, None, CPU)


def test_outputs_that_fill_no_words(tmp_path: Path) -> None:
    path = quantized_model("awq", tmp_path).path
    config = json.loads((path / "config.json").read_text()) | {"intermediate_size": 156}
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"gate_proj: 64 x 156 codes do not fill words of 8"):
        load_model(path, None, CPU)


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        (CONFIGS["fp8_block"], Quantization(WeightFormat.FP8, group_size=128)),
        (CONFIGS["fp8_channel"], Quantization(WeightFormat.COMPRESSED_TENSORS)),
        (CONFIGS["fp8_tensor"], Quantization(WeightFormat.COMPRESSED_TENSORS)),
        (awq_config(64), Quantization(WeightFormat.AWQ, group_size=64)),
        (awq_config(-1), Quantization(WeightFormat.AWQ)),
        (gptq_config(128), Quantization(WeightFormat.GPTQ, group_size=128, zero_offset=1)),
        (gptq_config(32, checkpoint_format="gptq_v2"), Quantization(WeightFormat.GPTQ, group_size=32)),
        (gptq_config(128) | {"dynamic": {"-:.*lm_head": {}}}, Quantization(WeightFormat.GPTQ, 128, 1)),
    ],
)
def test_configs(config: dict[str, Any], wanted: Quantization) -> None:
    assert Quantization.from_config(config) == wanted


def changed_scheme(of: str, **values: Any) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(json.dumps(compressed_config("channel", dynamic=True)))
    config["config_groups"]["group_0"][of] |= values
    return config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "bitsandbytes"}, r"quant_method 'bitsandbytes' .*; 'fp8' or 'compressed-tensors' or 'awq'"),
        ({}, "quant_method None"),
        (awq_config(128) | {"bits": 8}, "awq weights with bits 8 are not supported; 4 is"),
        (awq_config(16), "awq weights with group_size 16 are not supported; 32 or 64 or 128 or -1 is"),
        (awq_config(128) | {"version": "gemv"}, "version 'gemv' are not supported; 'gemm' is"),
        (awq_config(128) | {"zero_point": False}, "zero_point False"),
        (gptq_config(128) | {"bits": 3}, "gptq weights with bits 3 are not supported; 4 is"),
        (gptq_config(128, checkpoint_format="marlin"), "checkpoint_format 'marlin' .*; 'gptq' or 'gptq_v2' is"),
        (gptq_config(128) | {"dynamic": {"+:.*down.*": {"bits": 8}}}, r"dynamic\) \['\+:"),
        (CONFIGS["fp8_block"] | {"weight_block_size": None}, r"weight_block_size None .*; \[128, 128\] is"),
        (CONFIGS["fp8_block"] | {"activation_scheme": "static"}, "activation_scheme 'static' .*; 'dynamic' is"),
        (CONFIGS["fp8_channel"] | {"format": "pack-quantized"}, "format 'pack-quantized'"),
        (CONFIGS["fp8_channel"] | {"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme"),
        (CONFIGS["fp8_channel"] | {"config_groups": {}}, "number of config_groups 0"),
        (changed_scheme("weights", type="int"), "weights type 'int' .*; 'float' is"),
        (changed_scheme("weights", strategy="block"), "strategy 'block' .*; 'tensor' or 'channel' is"),
        (changed_scheme("input_activations", num_bits=16), "input_activations num_bits 16 .*; 8 is"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Quantization.from_config(config)
