"""A random Llama with a byte tokenizer: small enough that a fault costs more than a token.

Knows the checkpoint's files; knows nothing of clusters. In float32, so that whoever computes a token computes the same.
"""

import json
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

NUM_BYTES = 256  # token ids 0..255 are bytes
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
END_OF_TEXT, IM_START, IM_END = range(NUM_BYTES, NUM_BYTES + len(SPECIAL_TOKENS))


def write_byte_tokenizer(path: Path) -> None:
    """tokenizer.json in `path`: a token per byte, then SPECIAL_TOKENS."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text) for text in SPECIAL_TOKENS])
    tokenizer.save(str(path / "tokenizer.json"))


def write_toy_model(path: Path) -> None:
    """The checkpoint in `path`, a new directory."""
    import transformers

    path.mkdir(parents=True)
    config = transformers.LlamaConfig(
        vocab_size=NUM_BYTES + len(SPECIAL_TOKENS),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.25,  # large, so that the largest logit stands clear of the others
        bos_token_id=IM_START,
        eos_token_id=IM_END,
        pad_token_id=END_OF_TEXT,
    )
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(7)
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    write_byte_tokenizer(path)
    (path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"})
    )
