"""Model directories without weights: what the API reads of a model, with small tokenizers of the two usual makes."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

CORPUS = [
    "What is AI? AI refers to machines that can perform tasks that typically require human intelligence.",
    "The quick brown fox jumps over the lazy dog. What is the difference between AI and ML?",
    "def main():\n    print('hello')\n\n\tThe end. 你好，世界 naïve café 🙂🙃",
]
EOS, START, END, TOOL = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>"
BYTE_LEVEL_CONFIG = {"architectures": ["LlamaForCausalLM"], "vocab_size": 620, "max_position_embeddings": 2048}


def byte_level_tokenizer() -> Tokenizer:
    """GPT-2's make: ids 0..2 are special, the last one is an added token that is not special."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=[EOS, START, END], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken(TOOL, special=False, normalized=False)])
    return tokenizer


def sentencepiece_tokenizer() -> Tokenizer:
    """Llama 2's make: blanks are "▁", a blank is put first, unknown characters fall back to bytes."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyz.,"]
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "a"), ("i", "s"), ("▁", "is"), ("▁", "▁")]
    pieces += ["".join(merge) for merge in merges]
    vocabulary = {piece: token_id for token_id, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.add_tokens([AddedToken(TOOL, special=False, normalized=False)])
    return tokenizer


def write_model(folder: Path, tokenizer: Tokenizer, config: dict[str, Any], generation: dict[str, Any]) -> Path:
    """A directory as the API wants it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder
