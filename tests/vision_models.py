"""Tiny random checkpoints that read images, pictures for them, and transformers' own answers to compare with.

Built once per process, as `tiny_models.py` builds its own. Tiles are 14 x 14 pixels and become 4 tokens each.
"""

import functools
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from images import AROUND, IMAGE, ImageLayout, expanded
from messages import ImageRef
from tests.tiny_models import END_OF_TEXT, IM_END, IM_START, new_folder

IMAGE_ID, AROUND_ID, END_OF_UTTERANCE = 260, 259, 261
VOCAB_SIZE = 269
TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)  # SmolVLM's
TEXT = {
    "model_type": "llama",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.25,
    "bos_token_id": IM_START,
    "eos_token_id": END_OF_UTTERANCE,
    "pad_token_id": END_OF_TEXT,
}
VISION = {
    "hidden_size": 24,
    "intermediate_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 14,
    "patch_size": 3,  # 4 patches a side, and 2 pixels over
    "initializer_range": 0.25,
}


@functools.cache
def vision_model(name: str) -> Path:
    """`idefics3` or `smolvlm`, in float32."""
    import transformers

    stem = {"idefics3": "Idefics3", "smolvlm": "SmolVLM"}[name]
    path = new_folder(name)
    config = getattr(transformers, f"{stem}Config")(
        vision_config=VISION,
        text_config=TEXT,
        scale_factor=2,
        image_token_id=IMAGE_ID,
        pad_token_id=END_OF_TEXT,
        tie_word_embeddings=name == "smolvlm",
    )
    torch.manual_seed(len(name))
    model = getattr(transformers, f"{stem}ForConditionalGeneration")(config)
    with torch.no_grad():
        for tensor_name, tensor in model.named_parameters():
            if tensor_name.endswith("bias") or "position_embedding" in tensor_name:
                tensor.normal_(std=0.3)
            elif "norm" in tensor_name:
                tensor.uniform_(0.5, 1.5)
            elif "patch_embedding" in tensor_name or "modality_projection" in tensor_name:
                tensor.normal_(std=0.3)  # so that what is in a picture makes a difference
    model.save_pretrained(path)
    said = {
        "do_resize": True,
        "size": {"longest_edge": 40},
        "max_image_size": {"longest_edge": 14},
        "image_processor_type": f"{stem}ImageProcessor",
    }
    (path / "preprocessor_config.json").write_text(json.dumps(said))
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": END_OF_UTTERANCE}))
    _tokenizer().save(str(path / "tokenizer.json"))
    names = {"bos_token": "<|im_start|>", "eos_token": "<end_of_utterance>", "pad_token": "<|endoftext|>"}
    said = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE, **names}
    (path / "tokenizer_config.json").write_text(json.dumps(said))
    return path


def _tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", AROUND, IMAGE, "<end_of_utterance>")
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in special])
    assert (tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id(IMAGE)) == (IM_END, IMAGE_ID)
    return tokenizer


def picture(seed: int, width: int, height: int, mode: str = "RGB", kind: str = "PNG") -> bytes:
    """A file of random colours."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, len(mode)), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise[..., 0] if mode == "L" else noise, mode).save(file, kind)
    return file.getvalue()


def prompt_of(path: Path, text: str, pictures: list[bytes]) -> tuple[list[int], tuple[ImageRef, ...]]:
    """The expanded ids, as the API makes them."""
    layout, tokenizer = ImageLayout.from_dir(path), _tokenizer()
    assert layout is not None
    parts = []
    for data in pictures:
        with Image.open(io.BytesIO(data)) as image:
            tokens = tokenizer.encode(layout.text(*image.size), add_special_tokens=False).ids
        parts.append((hashlib.sha256(data).digest(), tokens))
    return expanded(tokenizer.encode(text, add_special_tokens=False).ids, layout.image_token_id, parts)


@functools.cache
def _oracle(path: Path) -> Any:
    import transformers

    model = transformers.AutoModelForImageTextToText.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    model.generation_config.eos_token_id = None
    return model


@functools.cache
def _processor(path: Path) -> Any:
    import transformers
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    # SmolVLM's own processor wants a package for videos; of images it makes the same.
    return transformers.Idefics3Processor(
        Idefics3ImageProcessorPil.from_pretrained(path),
        transformers.PreTrainedTokenizerFast.from_pretrained(path),
        image_seq_len=4,
    )


def transformers_answer(path: Path, text: str, pictures: list[bytes], num_tokens: int) -> tuple[list[int], list[int]]:
    """(ids of the prompt, generated ids), greedy, in float32, EOS ignored."""
    images = [Image.open(io.BytesIO(data)) for data in pictures]
    given = _processor(path)(
        text=[text], images=[images] if images else None, return_tensors="pt", add_special_tokens=False
    )
    out = _oracle(path).generate(**given, max_new_tokens=num_tokens, do_sample=False)
    num_prompt = given["input_ids"].shape[1]
    return out[0, :num_prompt].tolist(), out[0, num_prompt:].tolist()
