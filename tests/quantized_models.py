"""Tiny random Llama checkpoints in every quantized format, and the same numbers as float32 checkpoints.

Written naively, code by code, from the formats' descriptions: nothing here is shared with the loader.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

HIDDEN, INTERMEDIATE, VOCAB, LAYERS, HEADS, KV_HEADS = 64, 160, 67, 2, 4, 2
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": 64,
    "dtype": "float32",
    "tie_word_embeddings": False,
}
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which of 8 outputs the k-th nibble of a word is


@dataclass(frozen=True)
class QuantizedModel:
    """Two directories with the same numbers."""

    path: Path
    dense_path: Path


def awq_config(group_size: int) -> dict[str, Any]:
    return {"quant_method": "awq", "bits": 4, "group_size": group_size, "zero_point": True, "version": "gemm"}


def gptq_config(group_size: int, desc_act: bool = False, checkpoint_format: str = "gptq") -> dict[str, Any]:
    return {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": group_size,
        "desc_act": desc_act,
        "sym": False,
        "checkpoint_format": checkpoint_format,
    }


def compressed_config(strategy: str, dynamic: bool) -> dict[str, Any]:
    scheme = {"num_bits": 8, "type": "float", "symmetric": True}
    activations = scheme | {"dynamic": dynamic, "strategy": "token" if dynamic else "tensor"}
    weights = scheme | {"dynamic": False, "strategy": strategy}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


CONFIGS = {
    "fp8_block": {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": ["lm_head"],
    },
    "fp8_channel": compressed_config("channel", dynamic=True),
    "fp8_tensor": compressed_config("tensor", dynamic=False),
    "awq": awq_config(32),
    "awq_whole": awq_config(-1),
    "gptq": gptq_config(128),
    "gptq_v2": gptq_config(32, checkpoint_format="gptq_v2"),
    "gptq_act_order": gptq_config(32, desc_act=True),
    "gptq_orders": gptq_config(32, desc_act=True),  # queries, keys and values each in an order of its own
}


def quantized_model(name: str, root: Path) -> QuantizedModel:
    """The model `name` of CONFIGS, written below `root`."""
    generator = torch.Generator().manual_seed(len(name))
    stored = _unquantized(generator)
    dense = dict(stored)
    for linear, (num_outputs, num_inputs) in _linears().items():
        weight = torch.randn(num_outputs, num_inputs, generator=generator) * 0.3
        tensors, dense[f"{linear}.weight"] = _quantized(name, linear, weight)
        stored |= {f"{linear}.{kind}": tensor.contiguous() for kind, tensor in tensors.items()}
    path, dense_path = root / name, root / f"{name}-dense"
    write(path, CONFIG | {"quantization_config": CONFIGS[name]}, stored)
    write(dense_path, CONFIG, {key: tensor.contiguous() for key, tensor in dense.items()})
    return QuantizedModel(path, dense_path)


def write(path: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    save_file(tensors, path / "model.safetensors")


def _unquantized(generator: torch.Generator) -> dict[str, Tensor]:
    tensors = {
        "model.embed_tokens.weight": torch.randn(VOCAB, HIDDEN, generator=generator),
        "lm_head.weight": torch.randn(VOCAB, HIDDEN, generator=generator),
        "model.norm.weight": torch.rand(HIDDEN, generator=generator) + 0.5,
    }
    for layer in range(LAYERS):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{norm}.weight"] = torch.rand(HIDDEN, generator=generator) + 0.5
    return tensors


def _linears() -> dict[str, tuple[int, int]]:
    kv_size = HIDDEN // HEADS * KV_HEADS
    shapes = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (kv_size, HIDDEN),
        "self_attn.v_proj": (kv_size, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
        "mlp.up_proj": (INTERMEDIATE, HIDDEN),
        "mlp.down_proj": (HIDDEN, INTERMEDIATE),
    }
    return {f"model.layers.{layer}.{name}": shape for layer in range(LAYERS) for name, shape in shapes.items()}


def _quantized(model: str, linear: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """-> the tensors on disk, and what they mean: float32 [out, in]"""
    config = CONFIGS[model]
    if config["quant_method"] == "fp8":
        return _fp8_block(weight)
    if config["quant_method"] == "compressed-tensors":
        return _fp8(weight, is_per_output=model == "fp8_channel")
    group_size = weight.shape[1] if config["group_size"] == -1 else config["group_size"]
    groups = [column // group_size for column in range(weight.shape[1])]
    if config.get("desc_act"):
        alike = linear.replace("k_proj", "q_proj").replace("v_proj", "q_proj").replace("up_proj", "gate_proj")
        random.Random(linear if model == "gptq_orders" else alike).shuffle(groups)
    codes, scales, zeros = _int4(weight, groups)
    meant = (codes.float() - zeros.float()[groups]) * scales.float()[groups]
    if config["quant_method"] == "awq":
        tensors = {
            "qweight": _words(codes, AWQ_ORDER),
            "qzeros": _words(zeros, AWQ_ORDER),
            "scales": scales,
        }
    else:
        stored_zeros = zeros - 1 if config["checkpoint_format"] == "gptq" else zeros
        tensors = {
            "qweight": _words(codes.T, range(8)).T,
            "qzeros": _words(stored_zeros, range(8)),
            "scales": scales,
            "g_idx": torch.tensor(groups, dtype=torch.int32),
        }
    return tensors, meant.T


def _int4(weight: Tensor, groups: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """-> codes [in, out], float16 scales and zero points 1..15 [groups, out]"""
    num_groups = max(groups) + 1
    scales, zeros = torch.zeros(num_groups, len(weight)), torch.zeros(num_groups, len(weight), dtype=torch.int32)
    of_group = torch.tensor(groups)
    for group in range(num_groups):
        members = weight[:, of_group == group]
        low, high = members.amin(dim=1), members.amax(dim=1)
        scales[group] = ((high - low) / 15).half().float()
        zeros[group] = (-low / scales[group]).round().clamp(1, 15).int()
    codes = (weight.T / scales[of_group] + zeros[of_group]).round().clamp(0, 15).int()
    return codes, scales.half(), zeros


def _words(codes: Tensor, order: Any) -> Tensor:
    """codes: [rows, columns] -> int32 [rows, columns / 8], the k-th nibble of a word being its column order[k]"""
    rows = []
    for row in codes.tolist():
        words = []
        for first in range(0, len(row), 8):
            word = sum(row[first + column] << 4 * place for place, column in enumerate(order))
            words.append(word - (1 << 32) if word >= 1 << 31 else word)
        rows.append(words)
    return torch.tensor(rows, dtype=torch.int32)


def _fp8(weight: Tensor, is_per_output: bool) -> tuple[dict[str, Tensor], Tensor]:
    largest = weight.abs().amax(dim=1, keepdim=True) if is_per_output else weight.abs().max()
    scale = largest / 448
    values = (weight / scale).to(torch.float8_e4m3fn)
    tensors = {"weight": values, "weight_scale": scale}
    if not is_per_output:
        tensors["input_scale"] = torch.tensor([0.05])
    return tensors, values.float() * scale


def _fp8_block(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    num_outputs, num_inputs = weight.shape
    scales = torch.zeros(-(-num_outputs // 128), -(-num_inputs // 128))
    values = torch.zeros_like(weight).to(torch.float8_e4m3fn)
    meant = torch.zeros_like(weight)
    for row in range(scales.shape[0]):
        for column in range(scales.shape[1]):
            block = slice(128 * row, 128 * row + 128), slice(128 * column, 128 * column + 128)
            scales[row, column] = weight[block].abs().max() / 448
            values[block] = (weight[block] / scales[row, column]).to(torch.float8_e4m3fn)
            meant[block] = values[block].float() * scales[row, column]
    return {"weight": values, "weight_scale_inv": scales}, meant
