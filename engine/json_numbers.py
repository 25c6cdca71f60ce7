"""Keeps numbers in JSON within what a double holds: JSON allows 1E999, and parsers refuse it.

Outside of strings at most a hundred digits in a row, and as many more as one token has, and two in an exponent. Which
tokens that leaves depends on little: where in a string or a number the text is. Knows bytes; that the text is JSON is
the grammar's business.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

OUTSIDE, STRING, ESCAPE, NUMBER, LONG_NUMBER, EXPONENT, SIGNED_EXPONENT, ONE_DIGIT, TWO_DIGITS, NEVER = range(10)
MAX_DIGITS = 100


def _table() -> NDArray[np.uint8]:
    """[state, byte] -> state"""
    table = np.full((10, 256), OUTSIDE, np.uint8)
    table[[STRING, ESCAPE]] = STRING
    table[[EXPONENT, SIGNED_EXPONENT, NEVER]] = NEVER
    digits, signs, letters = list(b"0123456789"), list(b"+-"), list(b"eE")
    for state in (OUTSIDE, NUMBER, LONG_NUMBER, ONE_DIGIT, TWO_DIGITS):
        table[state, ord('"')] = STRING
    table[STRING, [ord('"'), ord("\\")]] = OUTSIDE, ESCAPE
    for state, then in (
        *((OUTSIDE, NUMBER), (NUMBER, NUMBER), (LONG_NUMBER, NEVER)),
        *((EXPONENT, ONE_DIGIT), (SIGNED_EXPONENT, ONE_DIGIT), (ONE_DIGIT, TWO_DIGITS), (TWO_DIGITS, NEVER)),
    ):
        table[state, digits] = then
    for state, then in ((NUMBER, EXPONENT), (LONG_NUMBER, EXPONENT), (ONE_DIGIT, NEVER), (TWO_DIGITS, NEVER)):
        table[state, letters] = then
    table[EXPONENT, signs] = SIGNED_EXPONENT
    return table


TABLE = _table()


class JsonNumbers:
    """Of one tokenizer. One thread at a time."""

    def __init__(self, tokens: Sequence[bytes], always: Iterable[int]) -> None:
        """tokens: the bytes of each token id; `always`: ids that say nothing of JSON, as EOS."""
        self.tokens, self._always = tokens, list(always)
        self._lengths = np.array([len(token) for token in tokens])
        self._begins = np.concatenate([[0], np.cumsum(self._lengths)[:-1]])
        self._bytes = np.frombuffer(b"".join(tokens) or b" ", np.uint8)
        self._bits: dict[int, int] = {}  # by state

    def bits(self, state: int) -> int:
        """A bit per token that may come next, the first token's the lowest."""
        if state not in self._bits:
            self._bits[state] = self._find(state)
        return self._bits[state]

    def _find(self, state: int) -> int:
        states = np.full(len(self.tokens), state, np.uint8)
        left = np.flatnonzero(self._lengths)
        place = 0
        while len(left):  # byte by byte, of all tokens that have one more
            states[left] = TABLE[states[left], self._bytes[self._begins[left] + place]]
            place += 1
            left = left[(self._lengths[left] > place) & (states[left] != NEVER)]
        allowed = states != NEVER
        allowed[self._always] = True
        return int.from_bytes(np.packbits(allowed, bitorder="little").tobytes(), "little")


class NumberState:
    """Where one sequence's text is."""

    def __init__(self, numbers: JsonNumbers) -> None:
        self._numbers = numbers
        self._state, self._num_digits = OUTSIDE, 0

    def read(self, token_ids: Iterable[int]) -> None:
        """The text goes on with these."""
        for token_id in token_ids:
            for byte in self._numbers.tokens[token_id]:
                self._state = int(TABLE[self._state, byte])
                self._num_digits = self._num_digits + 1 if self._state == NUMBER else 0
        if self._num_digits > MAX_DIGITS:
            self._state = LONG_NUMBER

    @property
    def bits(self) -> int:
        """A bit per token that may come next."""
        return self._numbers.bits(self._state)
