"""Text -> token ids, and the door to the way back.

Knows tokenizer.json through the `tokenizers` library alone: no transformers, no torch.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import orjson
import tokenizers

import freed_memory
from api.detokenizer import Detokenizer
from api.pieces import Pieces
from api.token_names import TokenNames
from errors import ModelError
from messages.request import OutputParams

OFF_LOOP_CHARS = 4096  # about a millisecond of tokenizing; longer texts go to a thread, where the GIL is released


class Tokenizer:
    """The model's tokenizer."""

    def __init__(self, content: str) -> None:
        """`content` is that of a tokenizer.json. Raises ModelError for one whose decoder is not known."""
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(content)
        except Exception as error:  # the library has no type of its own for "this is no tokenizer"
            raise ModelError(str(error)) from error
        # A tokenizer.json may carry the truncation and padding of its training.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.pieces = Pieces(self._tokenizer, orjson.loads(content).get("decoder"))
        self.names = TokenNames(self.pieces)
        self.longest_token_chars = max(map(len, self._tokenizer.get_vocab()), default=1)

    @classmethod
    def from_dir(cls, path: Path) -> "Tokenizer":
        """The tokenizer of a Hugging Face directory. Raises ModelError."""
        file = path / "tokenizer.json"
        try:
            tokenizer = cls(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ModelError) as error:
            raise ModelError(f"{file}: {error}") from None
        freed_memory.give_back()  # 36 MB of 107, for a vocabulary of 49,000
        return tokenizer

    async def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """The ids of `text`; a long text is tokenized in a thread."""
        if len(text) <= OFF_LOOP_CHARS:
            return self._encode(text, add_special_tokens)
        return await asyncio.to_thread(self._encode, text, add_special_tokens)

    def text(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of ids that belong together, EOS tokens as any other special ones."""
        output = OutputParams(skip_special_tokens=skip_special_tokens, add_spaces_between_special_tokens=False)
        return "".join(map(Detokenizer(self.pieces, output, frozenset()).feed, token_ids))

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        token_ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return token_ids
