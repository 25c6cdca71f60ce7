"""Tiny random checkpoints of every family, with transformers' own answers to compare with.

Each is built once per process, in a directory that goes with it. Sizes are odd on purpose. All carry the same
byte-level tokenizer: token ids 0..255 are bytes, then the special tokens below.
"""

import atexit
import copy
import functools
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from engine.kv_pool import KVLayout, KVPool
from engine.model_runner import ModelRunner, PrefillChunk
from engine.sequence import Sequence
from engine.weights import load_model
from kernels.panels import Kind
from messages import SamplingParams

END_OF_TEXT, IM_START, IM_END = 256, 257, 258
VOCAB_SIZE = 263  # prime; the last ids are no token of the tokenizer
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 60,
    "intermediate_size": 101,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.25,  # large, so that the largest logit stands clear of the others
    "bos_token_id": IM_START,
    "eos_token_id": IM_END,
    "pad_token_id": END_OF_TEXT,
}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def _rope(rope_type: str, **values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": 10000.0, **values}}


_GEMMA = {
    "num_hidden_layers": 4,
    "head_dim": 12,
    "sliding_window": 13,
    "query_pre_attn_scalar": 20,
    "final_logit_softcapping": 30.0,
    "tie_word_embeddings": False,  # a tied one repeats itself
}
_EXPERTS = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 36}
_PHI4 = _rope(
    "longrope",
    partial_rotary_factor=0.6,
    short_factor=[1.0, 1.1, 1.7],
    long_factor=[2.0, 3.0, 5.0],
) | {"original_max_position_embeddings": 128}

# name -> (transformers' config class stem, what differs from SIZES)
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"head_dim": 10}),
    "llama_tied": ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 6}),
    "llama_biased": ("Llama", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1}),
    "llama_linear": ("Llama", _rope("linear", factor=4.0)),
    "llama_dynamic": ("Llama", _rope("dynamic", factor=2.0)),
    "llama3": ("Llama", {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 64}}),
    "llama_yarn": ("Llama", _rope("yarn", factor=4.0, original_max_position_embeddings=128)),
    "mistral": ("Mistral", {"sliding_window": 13}),
    "mistral_full": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2_windowed": ("Qwen2", {"use_sliding_window": True, "sliding_window": 11, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "internlm2": ("Llama", _rope("dynamic", factor=2.0)),  # re-laid as InternLM2; the Llama is the oracle
    "internlm2_biased": ("Llama", {"attention_bias": True, "num_key_value_heads": 3}),
    "llama_gelu": ("Llama", {"hidden_act": "gelu"}),
    "gemma2": ("Gemma2", _GEMMA | {"attn_logit_softcapping": 4.0}),
    "gemma3": (
        "Gemma3Text",
        _GEMMA
        | {
            "sliding_window_pattern": 3,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
            },
        },
    ),
    "phi3": ("Phi3", {"sliding_window": 13}),
    "phi4": ("Phi3", _PHI4 | {"tie_word_embeddings": True, "num_key_value_heads": 3}),
    "phi_whole": ("Phi3", {"head_dim": 16, "hidden_size": 96} | _rope("default", partial_rotary_factor=0.5)),
    "gpt_neox": ("GPTNeoX", _rope("default", partial_rotary_factor=0.4)),
    "gpt_neox_in_turn": (
        "GPTNeoX",
        {"use_parallel_residual": False, "hidden_act": "gelu_fast", "num_hidden_layers": 2}
        | _rope("linear", factor=2.0, partial_rotary_factor=1.0),
    ),
    "gpt2": ("GPT2", {"n_inner": 101}),
    "mixtral": ("Mixtral", {"num_local_experts": 5, "sliding_window": 13, "intermediate_size": 100}),
    "qwen2_moe": ("Qwen2Moe", _EXPERTS | {"shared_expert_intermediate_size": 53, "mlp_only_layers": [1]}),
    "qwen3_moe": ("Qwen3Moe", _EXPERTS | {"head_dim": 16, "norm_topk_prob": True, "decoder_sparse_step": 2}),
}
# Those that run through transformers' own code.
FOREIGN: dict[str, tuple[str, dict[str, Any]]] = {
    "olmo3": ("Olmo3", {"sliding_window": 13, "layer_types": ["sliding_attention"] * 2 + ["full_attention"]}),
    "granite": (
        "Granite",
        {
            "embedding_multiplier": 2.0,
            "attention_multiplier": 0.2,
            "residual_multiplier": 0.7,
            "logits_scaling": 3.0,
        },
    ),
    "cohere": (
        "Cohere",
        {"logit_scale": 0.5, "use_qk_norm": True, "tie_word_embeddings": False, "num_hidden_layers": 2},
    ),
}
FOREIGN_REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt_oss": ("GptOss", {"head_dim": 10, "hidden_size": 64, "intermediate_size": 64, "num_local_experts": 4}),
    "deepseek_v3": (
        "DeepseekV3",
        {
            "num_key_value_heads": 6,
            "q_lora_rank": 20,
            "kv_lora_rank": 20,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 12,
            "v_head_dim": 10,
            "first_k_dense_replace": 3,
        },
    ),
}
REWARDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama_reward": ("Llama", {}),
    "mistral_reward": ("Mistral", {"sliding_window": 13}),
    "qwen3_reward": ("Qwen3", {"head_dim": 16}),
    "qwen2_reward": ("Qwen2", {}),  # two layers over the Qwen2 trunk
    "internlm2_reward": ("Llama", {}),  # v_head over the Llama re-laid as InternLM2
}
# Sizes that divide by 4 where tensor parallelism asks for it; 2 key-value heads, which 4 ranks share, or 4.
_EVEN = {"hidden_size": 80, "num_attention_heads": 8, "intermediate_size": 92}
CUTTABLE: dict[str, tuple[str, dict[str, Any]]] = {
    "llama_even": ("Llama", _EVEN | {"attention_bias": True, "mlp_bias": True}),
    "qwen3_even": ("Qwen3", _EVEN | {"head_dim": 16, "tie_word_embeddings": True, "num_key_value_heads": 4}),
    "internlm2_even": ("Llama", _EVEN | {"attention_bias": True}),
    "internlm2_even_4": ("Llama", _EVEN | {"num_key_value_heads": 4}),
    "qwen2_reward_even": ("Qwen2", _EVEN),
    "gemma2_even": ("Gemma2", _EVEN | _GEMMA | {"attn_logit_softcapping": 4.0}),
    "phi4_even": ("Phi3", _EVEN | _PHI4),
    "gpt_neox_even": ("GPTNeoX", _EVEN | _rope("default", partial_rotary_factor=0.4)),
    "gpt2_even": ("GPT2", _EVEN | {"n_inner": 92}),
    "mixtral_even": ("Mixtral", _EVEN | {"num_local_experts": 5}),
    "qwen2_moe_even": ("Qwen2Moe", _EVEN | _EXPERTS | {"shared_expert_intermediate_size": 52}),
}


@dataclass(frozen=True)
class TinyModel:
    """A checkpoint, and the one with the same numbers that transformers reads."""

    path: Path
    oracle_path: Path


@functools.cache
def _root() -> Path:
    root = Path(tempfile.mkdtemp(prefix="pdq-tiny-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return root


def new_folder(name: str) -> Path:
    """An empty one that goes with the process."""
    path = _root() / name
    path.mkdir()
    return path


@functools.cache
def tiny_model(name: str) -> TinyModel:
    """The checkpoint `name` of DECODERS, FOREIGN, REWARDS or CUTTABLE, in float32."""
    is_reward = "reward" in name
    stem, values = (DECODERS | FOREIGN | FOREIGN_REFUSED | REWARDS | CUTTABLE)[name]
    oracle_path = _root() / name
    _build(oracle_path, stem, values, "SequenceClassification" if is_reward else "CausalLM", seed=len(name))
    if name.startswith("internlm2"):
        return TinyModel(_as_internlm2(oracle_path, is_reward), oracle_path)
    if name.startswith("qwen2_reward"):
        return TinyModel(_with_two_layer_head(oracle_path), oracle_path)
    return TinyModel(oracle_path, oracle_path)


def sharded(name: str) -> Path:
    """The checkpoint in several files with an index."""
    import transformers

    path = _root() / f"{name}-sharded"
    if not path.exists():
        model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model(name).oracle_path)
        model.save_pretrained(path, max_shard_size="40KB")
        _write_tokenizer(path)
    return path


def _build(path: Path, stem: str, values: dict[str, Any], kind: str, seed: int) -> None:
    import transformers

    labels = {"num_labels": 1} if kind == "SequenceClassification" else {}
    config = getattr(transformers, f"{stem}Config")(**(SIZES | values | labels))
    torch.manual_seed(seed)
    model = getattr(transformers, f"AutoModelFor{kind}").from_config(config)
    with torch.no_grad():
        for tensor_name, tensor in model.named_parameters():
            # transformers leaves norms at one and biases at zero, which would hide that they are used.
            if tensor_name.endswith("bias"):
                tensor.normal_(std=0.1 if stem.startswith("GPT") else 0.5)  # theirs are many, and would be all there is
            elif "norm" in tensor_name or ".ln_" in tensor_name:
                tensor.uniform_(0.5, 1.5)
    model.save_pretrained(path)
    _write_tokenizer(path)


def _write_tokenizer(path: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text) for text in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])
    assert tokenizer.token_to_id("<|im_end|>") == IM_END
    tokenizer.save(str(path / "tokenizer.json"))
    said = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "chat_template": CHAT_TEMPLATE,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(said))


def _as_internlm2(llama: Path, is_reward: bool) -> Path:
    """The same numbers under InternLM2's names and in its layout."""
    config = json.loads((llama / "config.json").read_text())
    tensors = load_file(llama / "model.safetensors")
    num_heads, num_kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config["hidden_size"] // num_heads
    renamed: dict[str, Tensor] = {}
    names = {
        "model.embed_tokens.": "model.tok_embeddings.",
        "lm_head.": "output.",
        "score.": "v_head.",
        "self_attn.o_proj": "attention.wo",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.up_proj": "feed_forward.w3",
        "mlp.down_proj": "feed_forward.w2",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    for name, tensor in tensors.items():
        if ".k_proj." in name or ".v_proj." in name:
            continue
        if ".q_proj." in name:
            q, k, v = (tensors[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj"))
            per_group = q.view(num_kv_heads, num_heads // num_kv_heads * head_dim, *q.shape[1:])
            k, v = (part.view(num_kv_heads, head_dim, *part.shape[1:]) for part in (k, v))
            wqkv = torch.cat((per_group, k, v), dim=1)
            renamed[name.replace("self_attn.q_proj", "attention.wqkv")] = wqkv.reshape(-1, *q.shape[1:]).contiguous()
            continue
        for old, new in names.items():
            name = name.replace(old, new)
        renamed[name] = tensor
    path = llama.with_name(f"{llama.name}-relaid")
    path.mkdir()
    rope = config.pop("rope_parameters")
    config |= {
        "architectures": ["InternLM2ForRewardModel" if is_reward else "InternLM2ForCausalLM"],
        "model_type": "internlm2",
        "bias": config.pop("attention_bias", False),
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": rope["rope_type"], "factor": rope["factor"]} if "factor" in rope else None,
        "eos_token_id": [config["eos_token_id"], END_OF_TEXT],
    }
    (path / "config.json").write_text(json.dumps(config))
    save_file(renamed, path / "model.safetensors")
    _write_tokenizer(path)
    return path


def _with_two_layer_head(classifier: Path) -> Path:
    """The trunk of a Qwen2 classifier under the head of Qwen2ForRewardModel."""
    tensors = load_file(classifier / "model.safetensors")
    del tensors["score.weight"]
    config = json.loads((classifier / "config.json").read_text()) | {"architectures": ["Qwen2ForRewardModel"]}
    hidden = config["hidden_size"]
    generator = torch.Generator().manual_seed(5)
    for name, shape in (
        ("0.weight", (hidden, hidden)),
        ("0.bias", (hidden,)),
        ("2.weight", (1, hidden)),
        ("2.bias", (1,)),
    ):
        tensors[f"score.{name}"] = torch.randn(shape, generator=generator) * 0.2
    path = classifier.with_name(f"{classifier.name}-two-layer")
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    save_file(tensors, path / "model.safetensors")
    _write_tokenizer(path)
    return path


def prompts(count: int, longest: int, seed: int = 0) -> list[list[int]]:
    """Random prompts of 1 to `longest` byte tokens, one of each extreme."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [1, longest, *torch.randint(1, longest + 1, (count,), generator=generator).tolist()][:count]
    return [torch.randint(0, 256, (length,), generator=generator).tolist() for length in lengths]


@functools.cache
def _oracle(path: Path) -> Any:
    import transformers

    # Not every other implementation knows Gemma 2's cap.
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    model.generation_config = copy.deepcopy(model.generation_config)
    model.generation_config.eos_token_id = None  # as many tokens as asked for
    return model


def transformers_greedy(path: Path, prompt: list[int], num_tokens: int) -> list[int]:
    """What transformers generates, in float32, EOS ignored."""
    ids = torch.tensor([prompt])
    out = _oracle(path).generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_tokens, do_sample=False)
    tokens: list[int] = out[0, len(prompt) :].tolist()
    return tokens


def transformers_logprobs(path: Path, prompt_list: list[list[int]], dtype: torch.dtype) -> Tensor:
    """float32 [num_prompts, vocab], of the tokens after the prompts, computed in `dtype`."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(path)
    # The others want experts of sizes that divide by 16.
    experts = {"experts_implementation": "eager"} if hasattr(config, "num_experts_per_tok") else {}
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="eager", **experts)
    with torch.inference_mode():
        logits = [model.eval()(torch.tensor([prompt])).logits[0, -1].float() for prompt in prompt_list]
    return torch.stack(logits).log_softmax(dim=-1)


def tiny_runner(
    path: Path,
    num_blocks: int = 256,
    block_size: int = 16,
    dtype: torch.dtype | None = None,
    kind: Kind | None = None,
) -> ModelRunner:
    """A runner on a pool of its own."""
    model = load_model(path, dtype, torch.device("cpu"), kind=kind)
    config = model.config
    layout = KVLayout(config.num_layers, config.num_kv_heads, block_size, config.head_dim, model.dtype)
    return ModelRunner(model, KVPool.allocate(layout, num_blocks))


def new_sequence(token_ids: list[int], block_table: list[int]) -> Sequence:
    """A greedy sequence on the given blocks."""
    return Sequence(
        sequence_id="test",
        token_ids=list(token_ids),
        num_prompt_tokens=len(token_ids),
        sampling=SamplingParams(seed=0, max_new_tokens=1 << 20, ignore_eos=True),
        block_table=block_table,
    )


def sequences_for(runner: ModelRunner, prompt_list: list[list[int]], num_tokens: int) -> list[Sequence]:
    """Sequences with room for `num_tokens` more each, on scattered blocks of an empty pool."""
    block_size = runner.kv_layout.block_size
    order = torch.randperm(runner.pool.num_blocks, generator=torch.Generator().manual_seed(1)).tolist()
    sequences = []
    for prompt in prompt_list:
        count = -(-(len(prompt) + num_tokens) // block_size)
        assert count <= len(order), "the test's pool is too small"
        sequences.append(new_sequence(prompt, [order.pop() for _ in range(count)]))
    return sequences


def prefill_all(runner: ModelRunner, sequences: list[Sequence], token_budget: int) -> None:
    """Chunked prefill under a budget, in order; every sequence ends with its first token appended."""
    while waiting := [
        one for one in sequences if one.num_computed_tokens < one.num_tokens and not one.num_output_tokens
    ]:
        left, chunks = token_budget, []
        for sequence in waiting:
            num_tokens = min(left, sequence.num_tokens - sequence.num_computed_tokens)
            if num_tokens:
                chunks.append(PrefillChunk(sequence, num_tokens))
            left -= num_tokens
        for chunk, sampled in zip(chunks, runner.prefill(chunks), strict=True):
            if sampled is not None:
                chunk.sequence.token_ids.append(sampled.token_id)


def greedy(
    runner: ModelRunner, prompt_list: list[list[int]], num_tokens: int, token_budget: int = 512
) -> list[list[int]]:
    """Our greedy tokens: prefill under the budget, then decode all together."""
    sequences = sequences_for(runner, prompt_list, num_tokens)
    prefill_all(runner, sequences, token_budget)
    for _ in range(num_tokens - 1):
        for sequence, sampled in zip(sequences, runner.decode(sequences), strict=True):
            sequence.token_ids.append(sampled.token_id)
    return [sequence.output_token_ids for sequence in sequences]
