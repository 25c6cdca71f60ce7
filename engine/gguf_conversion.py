"""A GGUF file made into a Hugging Face directory: weights in bfloat16 and their codes, config, tokenizer. Done once.

Weights and config are read with the `gguf` package; only the tokenizer needs transformers. Knows no cache and no
network (`engine/model_files.py` does).
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from engine.gguf_codes import codes_of_blocks, reordered, write_codes
from errors import ModelError
from kernels.panels import Codes

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
SHARD_BYTES = 2 << 30

_MODEL_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert_gguf(gguf_path: Path, target: Path, report: Callable[[str], None]) -> None:
    """Write the model into the existing directory `target`. Raises ModelError when it cannot be converted."""
    try:
        reader = gguf.GGUFReader(gguf_path)
    except (OSError, ValueError) as error:
        raise ModelError(f"{gguf_path} is no readable GGUF file: {error}") from None
    said = _Metadata(reader)
    if said.architecture not in ARCHITECTURES:
        raise ModelError(
            f"{gguf_path}: GGUF architecture {said.architecture!r} is not supported; {', '.join(ARCHITECTURES)} are"
        )
    config = _config(said, reader)
    _write_json(target / "config.json", config)
    _write_json(target / "generation_config.json", {name: config[name] for name in ("bos_token_id", "eos_token_id")})
    _write_weights(reader, config, target, lambda share: report(f"converting {gguf_path.name} to bfloat16 {share:.0%}"))
    report("converting the tokenizer")
    _write_tokenizer(gguf_path, target)


class _Metadata:
    """The file's key-value part."""

    def __init__(self, reader: Any) -> None:
        self._fields = reader.fields
        self.architecture = str(self.get("general.architecture", ""))

    def get(self, key: str, default: Any = None) -> Any:
        return self._fields[key].contents() if key in self._fields else default

    def of_model(self, key: str, default: Any = None) -> Any:
        return self.get(f"{self.architecture}.{key}", default)

    def wanted(self, key: str) -> Any:
        value = self.of_model(key)
        if value is None:
            raise ModelError(f"the GGUF file lacks {self.architecture}.{key}")
        return value


def _config(said: _Metadata, reader: Any) -> dict[str, Any]:
    """config.json, as transformers 4 and 5 would both read it."""
    shapes = {tensor.name: [int(size) for size in reversed(tensor.shape)] for tensor in reader.tensors}
    if "token_embd.weight" not in shapes:
        raise ModelError("the GGUF file lacks token_embd.weight")
    num_heads, hidden_size = int(said.wanted("attention.head_count")), int(said.wanted("embedding_length"))
    head_dim = (
        said.of_model("attention.key_length") or said.of_model("rope.dimension_count") or hidden_size // num_heads
    )
    eos = [said.get("tokenizer.ggml.eos_token_id"), said.get("tokenizer.ggml.eot_token_id")]
    window = said.of_model("attention.sliding_window")
    architecture = ARCHITECTURES[said.architecture]
    if window and said.architecture == "llama":
        architecture = "MistralForCausalLM"  # GGUF has no name of its own for it
    return {
        "architectures": [architecture],
        "model_type": architecture.removesuffix("ForCausalLM").lower(),
        "vocab_size": shapes["token_embd.weight"][0],
        "hidden_size": hidden_size,
        "intermediate_size": int(said.wanted("feed_forward_length")),
        "num_hidden_layers": int(said.wanted("block_count")),
        "num_attention_heads": num_heads,
        "num_key_value_heads": int(said.of_model("attention.head_count_kv", num_heads)),
        "head_dim": int(head_dim),
        "hidden_act": "silu",
        "rms_norm_eps": round(float(said.wanted("attention.layer_norm_rms_epsilon")), 12),  # stored as float32
        "max_position_embeddings": int(said.wanted("context_length")),
        "rope_theta": float(said.of_model("rope.freq_base", 10000.0)),
        "rope_scaling": _rope_scaling(said, reader),
        "attention_bias": "blk.0.attn_q.bias" in shapes,
        "sliding_window": int(window) if window else None,
        "tie_word_embeddings": "output.weight" not in shapes,
        "bos_token_id": said.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": sorted({token_id for token_id in eos if token_id is not None}),
        "torch_dtype": "bfloat16",
    }


def _rope_scaling(said: _Metadata, reader: Any) -> dict[str, Any] | None:
    for tensor in reader.tensors:
        if tensor.name == "rope_freqs.weight":
            # Llama 3's scaling, already worked out: one divisor per frequency.
            divisors = [float(value) for value in tensor.data]
            return {
                "rope_type": "longrope",
                "short_factor": divisors,
                "long_factor": divisors,
                "attention_factor": 1.0,
            }
    kind = said.of_model("rope.scaling.type", "none")
    if kind == "none":
        return None
    scaling = {"rope_type": kind, "factor": float(said.of_model("rope.scaling.factor", 1.0))}
    original = said.of_model("rope.scaling.original_context_length")
    return scaling if original is None else scaling | {"original_max_position_embeddings": int(original)}


def _write_weights(reader: Any, config: dict[str, Any], target: Path, progress: Callable[[float], None]) -> None:
    """All tensors in bfloat16, in shards of bounded size with an index."""
    shard: dict[str, Tensor] = {}
    shards: list[list[str]] = []
    codes: dict[str, Codes] = {}

    def close_shard() -> None:
        path = target / _shard_name(len(shards))
        save_file(shard, path, metadata={"format": "pt"})
        path.chmod(0o644)  # safetensors makes it the owner's alone
        shards.append(list(shard))
        shard.clear()

    all_bytes = sum(int(tensor.n_bytes) for tensor in reader.tensors) or 1
    read_bytes, shard_bytes, last_report = 0, 0, 0.0
    for tensor in reader.tensors:
        read_bytes += int(tensor.n_bytes)
        for name, value in _converted(tensor, config):
            shard[name] = value
            shard_bytes += value.nbytes
            found = codes_of_blocks(tensor.data, tensor.tensor_type.name)
            if found is not None:
                codes[name.removesuffix(".weight")] = reordered(found, _order_of(name, config))
        if shard_bytes >= SHARD_BYTES:
            close_shard()
            shard_bytes = 0
        if read_bytes / all_bytes - last_report >= 0.1:
            last_report = read_bytes / all_bytes
            progress(last_report)
    if shard:
        close_shard()
    write_codes(codes, target)
    weight_map = {name: _shard_name(index) for index, names in enumerate(shards) for name in names}
    _write_json(target / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def _shard_name(index: int) -> str:
    return f"model-{index + 1:05d}.safetensors"


def _converted(tensor: Any, config: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """The tensor under its Hugging Face name; nothing for what config.json says already."""
    if tensor.name == "rope_freqs.weight":
        return
    name = _hugging_face_name(tensor.name)
    try:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError:
        raise ModelError(f"{tensor.name} is quantized as {tensor.tensor_type.name}, which gguf cannot read") from None
    writable = np.require(values, requirements="W")  # unquantized tensors come as views of the read-only file
    value = torch.from_numpy(writable).reshape([int(size) for size in reversed(tensor.shape)])
    yield name, _order_of(name, config)(value).to(torch.bfloat16).contiguous()


def _order_of(name: str, config: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    """What brings the rows of a tensor into Hugging Face's order."""
    if config["model_type"] in ("llama", "mistral"):
        if ".q_proj." in name:
            return lambda value: pair_halves(value, config["num_attention_heads"])
        if ".k_proj." in name:
            return lambda value: pair_halves(value, config["num_key_value_heads"])
    return lambda value: value


def _hugging_face_name(name: str) -> str:
    if name in _MODEL_NAMES:
        return _MODEL_NAMES[name]
    kind, _, rest = name.partition(".")
    index, _, rest = rest.partition(".")
    stem, _, suffix = rest.partition(".")
    if kind != "blk" or stem not in _LAYER_NAMES or suffix not in ("weight", "bias"):
        raise ModelError(f"the GGUF file holds {name}, which no supported model has")
    return f"model.layers.{index}.{_LAYER_NAMES[stem]}.{suffix}"


def pair_halves(weight: Tensor, num_heads: int) -> Tensor:
    """Undo GGUF's order of a llama head: it interleaves the two halves that Hugging Face rotates with each other.

    weight: [num_heads * head_dim, ...], the same shape comes back.
    """
    interleaved = weight.reshape(num_heads, -1, 2, *weight.shape[1:])
    return interleaved.transpose(1, 2).reshape(weight.shape)


def _write_tokenizer(gguf_path: Path, target: Path) -> None:
    from transformers import AutoTokenizer  # seconds to import, and only this file's readers pay

    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf_path.parent, gguf_file=gguf_path.name)
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        raise ModelError(f"the tokenizer of {gguf_path} cannot be converted: {error}") from None
    tokenizer.save_pretrained(target)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
