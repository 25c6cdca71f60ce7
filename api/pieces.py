"""What bytes each token stands for, read from the decoder of a tokenizer.json.

Knows the decoders of the `tokenizers` library that language models use: ByteLevel (GPT-2, Llama 3, Qwen), sentencepiece
(Replace, ByteFallback, Fuse, Strip: Llama 2, Mistral, InternLM2), Metaspace, and none. Working on bytes and not on
decoded windows makes a step cost the same however long the output is, and text never has to be taken back.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tokenizers

from errors import ModelError

PieceToBytes = Callable[[str], bytes]


@dataclass(frozen=True, slots=True)
class PieceRule:
    """How pieces become text. Stripping is done once per run of ordinary tokens."""

    to_bytes: PieceToBytes
    first_to_bytes: PieceToBytes  # the same for the first piece of a run
    separator: str = ""  # stands between two pieces of a run
    strip_character: str = " "
    strip_count: int = 0  # most strip_characters taken off the start of a run


class Pieces:
    """The vocabulary seen from the output side; shared by all requests."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, decoder: dict[str, Any] | None) -> None:
        self.rule = piece_rule(decoder)
        added = tokenizer.get_added_tokens_decoder()
        self.added = {token_id: token.content for token_id, token in added.items()}
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self.special_texts = frozenset(token.content for token in added.values() if token.special)
        self._tokenizer = tokenizer
        self._bytes: dict[tuple[int, bool], bytes] = {}
        self.inside: dict[int, str] = {}  # what an ordinary token adds inside a run, if that is whole characters

    def token_bytes(self, token_id: int, is_first: bool) -> bytes:
        """The bytes of an ordinary token; none for an id that the tokenizer does not have."""
        key = (token_id, is_first)
        known = self._bytes.get(key)
        if known is None:
            piece = self._tokenizer.id_to_token(token_id)
            convert = self.rule.first_to_bytes if is_first else self.rule.to_bytes
            known = self._bytes[key] = b"" if piece is None else convert(piece)
        return known

    def learn_inside(self, token_id: int) -> None:
        """Put the token into `inside` if it belongs there. Most of a vocabulary does, and little of it is ever used."""
        if token_id in self.added or token_id in self.inside:
            return
        try:
            self.inside[token_id] = self.rule.separator + self.token_bytes(token_id, False).decode()
        except UnicodeDecodeError:
            pass  # a part of a character


def piece_rule(decoder: dict[str, Any] | None) -> PieceRule:
    """The rule of a tokenizer.json's "decoder". Raises ModelError for one that is not known here."""
    if decoder is None:
        return PieceRule(_utf8, _utf8, separator=" ")
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    convert: PieceToBytes = _utf8
    first: PieceToBytes = _utf8
    strip_character, strip_count = " ", 0
    fused = False
    for step in reversed(steps):  # each step wraps those after it
        kind = step["type"]
        if kind == "Fuse":
            fused = True
        elif kind == "ByteLevel" and step is steps[-1]:
            convert = first = _byte_level
        elif kind == "ByteFallback":
            convert, first = _with_byte_fallback(convert), _with_byte_fallback(first)
        elif kind == "Replace" and "String" in step["pattern"]:
            replace = _replacing(step["pattern"]["String"], step["content"])
            convert, first = _after(replace, convert), _after(replace, first)
        elif kind == "Metaspace" and len(steps) == 1:
            mark = step.get("replacement", "▁")
            convert = _after(_replacing(mark, " "), convert)
            keeps_first = step.get("prepend_scheme", "always") == "never"
            first = convert if keeps_first else _after(_replacing(mark, ""), first)
        elif kind == "Strip" and step["stop"] == 0 and not fused:
            strip_character, strip_count = step["content"], step["start"]
        else:
            raise ModelError(f"tokenizer.json: decoder {kind} is not supported here")
    if strip_count and not fused:
        raise ModelError("tokenizer.json: decoder Strip without Fuse is not supported")
    return PieceRule(convert, first, strip_character=strip_character, strip_count=strip_count)


def _utf8(piece: str) -> bytes:
    return piece.encode()


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes: character -> byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    hidden = [byte for byte in range(256) if byte not in set(printable)]
    return alphabet | {chr(256 + place): byte for place, byte in enumerate(hidden)}


_BYTE_OF = _byte_level_alphabet()


def _byte_level(piece: str) -> bytes:
    values = [_BYTE_OF.get(character) for character in piece]
    known = [value for value in values if value is not None]
    # As the library does: a piece with any other character stands for itself.
    return bytes(known) if len(known) == len(values) else piece.encode()


def _with_byte_fallback(convert: PieceToBytes) -> PieceToBytes:
    def to_bytes(piece: str) -> bytes:
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            try:
                return bytes([int(piece[3:5], 16)])
            except ValueError:
                return convert(piece)
        return convert(piece)

    return to_bytes


def _replacing(old: str, new: str) -> Callable[[str], str]:
    return lambda piece: piece.replace(old, new)


def _after(change: Callable[[str], str], convert: PieceToBytes) -> PieceToBytes:
    return lambda piece: convert(change(piece))
