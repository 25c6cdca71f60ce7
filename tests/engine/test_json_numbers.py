"""Numbers in JSON: which tokens keep them within a double, wherever the text is cut into tokens."""

import json
import math
import random
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.json_numbers import MAX_DIGITS, JsonNumbers, NumberState

BYTES = [bytes([byte]) for byte in range(256)]
EOS = 256
NUMBERS = JsonNumbers([*BYTES, b"", b"1E", b"E9", b"999", b'"1E999"', b"1E999", b"e+12", b"true,"], [EOS])


def may_come(text: str) -> set[bytes]:
    state = NumberState(NUMBERS)
    state.read(text.encode())
    return {token for place, token in enumerate(NUMBERS.tokens) if state.bits >> place & 1 and token}


@pytest.mark.parametrize(
    ("text", "yes", "no"),
    [
        ("", b"1 1E true, E9", b"1E999"),
        ('{"a": 1', b"0 e E . , 999 E9 e+12", b""),
        ('{"a": 1e', b"1 + - 9", b"e , 999"),
        ('{"a": 1e-', b"1", b"- ,"),
        ('{"a": 1e-1', b"2 , }", b"e 999 1E"),
        ('{"a": 1E12', b", } ]", b"3 e E9"),
        ('{"a": "1E12', b"3 999 1E999 e+12", b""),
        ('{"a": "\\"1E12', b"3 999", b""),
        ('{"a": "1E12", "b": 2E12', b",", b"3"),
        ("1" * MAX_DIGITS, b"2 . e", b""),
        ("1" * (MAX_DIGITS + 1), b". e ,", b"2 999"),
        ("1" * (MAX_DIGITS + 1) + "." + "1" * 5, b"2 999", b""),
    ],
)
def test_what_may_come_next(text: str, yes: bytes, no: bytes) -> None:
    allowed = may_come(text)
    assert set(yes.split()) <= allowed
    assert not set(no.split()) & allowed


def test_the_end_is_somebody_elses_to_allow() -> None:
    state = NumberState(NUMBERS)
    state.read(b"1e")
    assert state.bits >> EOS & 1


@given(
    st.recursive(st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.text() | st.booleans(), st.lists)
)
def test_json_of_small_exponents_is_written_as_it_is(value: object) -> None:
    text = json.dumps(value, ensure_ascii=False)
    outside = re.sub(r'"(\\.|[^"\\])*"', '""', text)
    is_within = not re.search(r"[eE][+-]?[0-9]{3}", outside) and not re.search(rf"[0-9]{{{MAX_DIGITS}}}", outside)
    state = NumberState(NUMBERS)
    survives = True
    for byte in text.encode():
        survives = survives and bool(state.bits >> byte & 1)
        state.read([byte])
    assert survives == is_within


def test_random_texts_of_allowed_tokens_hold_doubles() -> None:
    draws = random.Random(0)
    digits = [place for place, token in enumerate(NUMBERS.tokens) if re.fullmatch(rb"[0-9eE+\-]+", token)]
    for _ in range(300):
        state, text = NumberState(NUMBERS), b"1"
        state.read(text)
        for _ in range(draws.randrange(1, 150)):
            allowed = [place for place in digits if state.bits >> place & 1]
            if not allowed:
                break
            token = draws.choice(allowed)
            state.read([token])
            text += NUMBERS.tokens[token]
        found = re.match(rb"[0-9]+([eE][+-]?[0-9]+)?", text)
        assert found is not None and math.isfinite(float(found[0]))


def test_all_tokens_at_once_are_what_each_is_alone() -> None:
    for text in ("", '"', '"\\', "1", "1e", "1e+", "1e1", "1e11", "1" * 150):
        bits = NumberState(NUMBERS)
        bits.read(text.encode())
        alone = []
        for token in NUMBERS.tokens:
            one = JsonNumbers([*BYTES, token], [])
            state = NumberState(one)
            state.read(text.encode())
            alone.append(bool(state.bits >> 256 & 1))
        together = [bool(bits.bits >> place & 1) for place in range(len(NUMBERS.tokens))]
        assert np.array_equal(together, alone)
