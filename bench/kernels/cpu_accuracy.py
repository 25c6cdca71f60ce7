"""What int8 and int4 weights cost in accuracy: logits and likelihood of a text, beside the same model in float32.

python -m bench.kernels.cpu_accuracy [MODEL]
"""

import sys
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from bench.markdown import markdown_table
from engine.gguf_codes import FILE_NAME
from engine.kv_pool import KVLayout, KVPool
from engine.model import Model
from engine.model_files import resolve_model
from engine.weights import load_model
from kernels.panels import Kind
from kernels.reference import PrefillMeta
from settings.loading import load_settings

CPU = torch.device("cpu")
# Lincoln at Gettysburg, and how Alice begins (Carroll): both in the public domain.
TEXT = """Four score and seven years ago our fathers brought forth on this continent, a new nation, conceived in Liberty,
and dedicated to the proposition that all men are created equal. Now we are engaged in a great civil war, testing whether
that nation, or any nation so conceived and so dedicated, can long endure. We are met on a great battle-field of that war.
We have come to dedicate a portion of that field, as a final resting place for those who here gave their lives that that
nation might live. It is altogether fitting and proper that we should do this.

Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do: once or twice she
had peeped into the book her sister was reading, but it had no pictures or conversations in it, "and what is the use of a
book," thought Alice "without pictures or conversations?" So she was considering in her own mind (as well as she could, for
the hot day made her feel very sleepy and stupid), whether the pleasure of making a daisy-chain would be worth the trouble
of getting up and picking the daisies, when suddenly a White Rabbit with pink eyes ran close by her. There was nothing so
very remarkable in that; nor did Alice think it so very much out of the way to hear the Rabbit say to itself, "Oh dear! Oh
dear! I shall be late!"
"""  # noqa: E501


@torch.inference_mode()
def logits_of(model: Model, token_ids: list[int]) -> Tensor:
    """float32 [tokens, vocab]"""
    size, config = len(token_ids), model.config
    layout = KVLayout(config.num_layers, model.num_kv_heads, 16, config.head_dim, model.dtype)
    blocks = list(range(-(-size // 16)))
    meta = PrefillMeta.of([0, size], [0], [blocks], CPU)
    places = torch.arange(size)
    pool = KVPool.allocate(layout, len(blocks))
    return model.logits(model.forward(torch.tensor(token_ids), places, places, meta, pool))


def main() -> None:
    settings = load_settings().model
    if sys.argv[1:]:
        settings = settings.model_copy(update={"path": sys.argv[1]})
    model_dir = resolve_model(settings, lambda line: None)
    token_ids = Tokenizer.from_file(str(model_dir / "tokenizer.json")).encode(TEXT).ids
    wanted = logits_of(load_model(model_dir, torch.float32, CPU), token_ids)
    rows = [_row("float32", wanted, wanted, token_ids)]
    for kind in (None, Kind.INT8, Kind.INT4):
        name = "bf16" if kind is None else kind.name.lower()
        rows.append(_row(name, _of_kind(model_dir, kind, token_ids), wanted, token_ids))
    if (model_dir / FILE_NAME).exists():
        with tempfile.TemporaryDirectory() as made:
            for file in model_dir.iterdir():
                if file.name != FILE_NAME:
                    (Path(made) / file.name).symlink_to(file)
            rows.append(_row("int4, quantized anew", _of_kind(Path(made), Kind.INT4, token_ids), wanted, token_ids))
    header = ["weights", "loss per token", "perplexity", "logits' error", "same next token"]
    print(f"{model_dir.name}, {len(token_ids)} tokens\n\n{markdown_table(header, rows)}")


def _of_kind(model_dir: Path, kind: Kind | None, token_ids: list[int]) -> Tensor:
    return logits_of(load_model(model_dir, torch.bfloat16, CPU, kind=kind), token_ids)


def _row(name: str, logits: Tensor, wanted: Tensor, token_ids: list[int]) -> list[str]:
    loss = float(torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(token_ids[1:])))
    error = float((logits - wanted).norm() / wanted.norm())
    same = float((logits.argmax(-1) == wanted.argmax(-1)).float().mean())
    return [name, f"{loss:.4f}", f"{torch.tensor(loss).exp():.3f}", f"{error:.2%}", f"{same:.1%}"]


if __name__ == "__main__":
    main()
