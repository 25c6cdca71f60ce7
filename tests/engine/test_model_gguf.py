"""A GGUF file written as llama.cpp writes it comes back as the model it was made from."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from engine.gguf_conversion import convert_gguf, pair_halves
from errors import ModelError
from tests.tiny_models import IM_END, greedy, prompts, tiny_model, tiny_runner, transformers_greedy

GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.": "blk.",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm",
    "input_layernorm": "attn_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
}


def interleave_halves(weight: Tensor, num_heads: int) -> Tensor:
    """llama.cpp's convert_hf_to_gguf.py, LlamaModel.permute."""
    halves = weight.reshape(num_heads, 2, weight.shape[0] // num_heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def rounded_to_bf16(name: str, tmp_path: Path) -> Path:
    """The tiny model with weights that bfloat16 holds exactly."""
    source, path = tiny_model(name).path, tmp_path / f"{name}-rounded"
    path.mkdir()
    tensors = {key: tensor.bfloat16().float() for key, tensor in load_file(source / "model.safetensors").items()}
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_bytes((source / "config.json").read_bytes())
    return path


def write_gguf(model_dir: Path, path: Path, architecture: str, frequency_divisors: list[float] | None = None) -> None:
    config = json.loads((model_dir / "config.json").read_text())
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    if config.get("head_dim"):
        writer.add_key_length(config["head_dim"])
    alphabet = sorted(
        Tokenizer.from_file(str(tiny_model("llama").path / "tokenizer.json")).get_vocab().items(),
        key=lambda item: item[1],
    )
    tokens = [text for text, _ in alphabet] + ["ab"] + [f"<unused{i}>" for i in range(3)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if text.startswith("<|") else 1 for text in tokens])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(IM_END)
    writer.add_bos_token_id(IM_END - 1)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    for name, tensor in load_file(model_dir / "model.safetensors").items():
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = "num_attention_heads" if "q_proj" in name else "num_key_value_heads"
            tensor = interleave_halves(tensor, config[heads])
        for old, new in GGUF_NAMES.items():
            name = name.replace(old, new)
        writer.add_tensor(name, np.ascontiguousarray(tensor.numpy()))
    if frequency_divisors is not None:
        writer.add_tensor("rope_freqs.weight", np.array(frequency_divisors, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("name", "architecture"), [("llama", "llama"), ("llama_tied", "llama"), ("qwen2", "qwen2"), ("qwen3", "qwen3")]
)
def test_round_trip(name: str, architecture: str, tmp_path: Path) -> None:
    original, target = rounded_to_bf16(name, tmp_path), tmp_path / "converted"
    write_gguf(original, tmp_path / "m.gguf", architecture)
    target.mkdir()
    convert_gguf(tmp_path / "m.gguf", target, lambda text: None)
    prompt_list = prompts(count=3, longest=40)
    wanted = [transformers_greedy(original, prompt, 12) for prompt in prompt_list]
    runner = tiny_runner(target, dtype=torch.float32)
    assert greedy(runner, prompt_list, 12) == wanted
    assert runner.eos_token_ids == (IM_END,)
    assert tiny_runner(target).model.dtype == torch.bfloat16
    tokenizer = Tokenizer.from_file(str(target / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode("cab, été").ids) == "cab, été"
    assert (target / "chat_template.jinja").read_text() == "{{ messages[0]['content'] }}"


def test_llama3_scaling_comes_as_divisors(tmp_path: Path) -> None:
    original, target = rounded_to_bf16("llama3", tmp_path), tmp_path / "converted"
    from engine.model_config import ModelConfig

    rope = ModelConfig.from_dir(original).rope
    assert rope is not None
    head_dim = 10
    plain = 1 / rope.theta ** (torch.arange(0, head_dim, 2) / head_dim)
    write_gguf(original, tmp_path / "m.gguf", "llama", (plain / rope.inverse_frequencies(head_dim)).tolist())
    target.mkdir()
    convert_gguf(tmp_path / "m.gguf", target, lambda text: None)
    converted = ModelConfig.from_dir(target).rope
    assert converted is not None
    torch.testing.assert_close(converted.inverse_frequencies(head_dim), rope.inverse_frequencies(head_dim))
    assert converted.attention_factor == 1.0


def test_pair_halves_undoes_llama_cpp() -> None:
    weight = torch.randn(60, 7)
    assert torch.equal(pair_halves(interleave_halves(weight, 6), 6), weight)


def test_what_cannot_be_converted_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"no gguf at all, but long enough to have a header")
    with pytest.raises(ModelError, match="no readable GGUF"):
        convert_gguf(broken, tmp_path, lambda text: None)
    write_gguf(tiny_model("llama").path, tmp_path / "m.gguf", "gptneox")
    with pytest.raises(ModelError, match="architecture 'gptneox' is not supported; llama, qwen2, qwen3 are"):
        convert_gguf(tmp_path / "m.gguf", tmp_path, lambda text: None)
