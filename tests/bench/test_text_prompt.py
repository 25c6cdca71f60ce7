"""Text that has as many tokens as the ids it is made of."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from bench.prompts import PromptSource
from bench.text_prompt import TextPrompt
from errors import ConfigError

WORDS = "the quick brown fox jumps over the lazy dog and then the dog sleeps while another fox is thinking of it " * 5


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE whose pieces merge, as those of real models do."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([WORDS], trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_the_text_has_as_many_tokens_as_asked_for(tokenizer_dir: Path) -> None:
    text_of = TextPrompt(tokenizer_dir)
    tokenizer = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    prompts = PromptSource(3, 40, 300)
    texts = []
    for index in range(20):
        ids = prompts.prompt("g", index, 64)
        text = text_of(ids)
        assert len(tokenizer.encode(text, add_special_tokens=False).ids) == 64
        texts.append(text)
    assert len(set(texts)) == 20  # still distinct: no prefix cache answers


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="--tokenizer"):
        TextPrompt(tmp_path)
