"""A checkpoint of the 0.5B shape of Qwen2 with random weights in bfloat16, and the demo model's tokenizer.

Its speed is that of the real one; its words mean nothing. Made once, and the same each time: the seed is fixed.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

HIDDEN, NUM_LAYERS, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 896, 24, 14, 2, 64
INTERMEDIATE, VOCABULARY = 4864, 151936
SPREAD = 0.02  # of the weights, as before training
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def make_half_billion(target: Path, demo_dir: Path) -> None:
    """Write it to `target`, unless it is there."""
    if target.exists():
        return
    made = target.with_name(f"{target.name}.tmp")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    for name in TOKENIZER_FILES:
        shutil.copy(demo_dir / name, made / name)
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": NUM_HEADS,
        "num_key_value_heads": NUM_KV_HEADS,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-06,
        "max_position_embeddings": 32768,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
    }
    (made / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(_weights(), made / "model.safetensors", metadata={"format": "pt"})
    made.rename(target)


def _weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=generator) * SPREAD).to(torch.bfloat16)

    def ones(size: int) -> Tensor:
        return torch.ones(size, dtype=torch.bfloat16)

    weights = {"model.embed_tokens.weight": random(VOCABULARY, HIDDEN), "model.norm.weight": ones(HIDDEN)}
    for layer in range(NUM_LAYERS):
        name = f"model.layers.{layer}"
        weights[f"{name}.input_layernorm.weight"] = ones(HIDDEN)
        weights[f"{name}.post_attention_layernorm.weight"] = ones(HIDDEN)
        for part, rows in (("q", NUM_HEADS), ("k", NUM_KV_HEADS), ("v", NUM_KV_HEADS)):
            weights[f"{name}.self_attn.{part}_proj.weight"] = random(rows * HEAD_DIM, HIDDEN)
            weights[f"{name}.self_attn.{part}_proj.bias"] = random(rows * HEAD_DIM)
        weights[f"{name}.self_attn.o_proj.weight"] = random(HIDDEN, NUM_HEADS * HEAD_DIM)
        weights[f"{name}.mlp.gate_proj.weight"] = random(INTERMEDIATE, HIDDEN)
        weights[f"{name}.mlp.up_proj.weight"] = random(INTERMEDIATE, HIDDEN)
        weights[f"{name}.mlp.down_proj.weight"] = random(HIDDEN, INTERMEDIATE)
    return weights
