"""What hypothesis draws for the samplers: rows that want anything at all, and logits with ties, masks and faults."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from engine.sampler import Sampled, SamplingRow
from messages.request import SamplingParams

KINDS = ("smooth", "peaked", "ties", "flat", "masked", "nan", "inf", "none", "huge")


def params(vocab_size: int) -> st.SearchStrategy[dict[str, Any]]:
    """Keyword arguments of SamplingParams. Some ids lie outside the vocabulary."""
    ids = st.integers(-1, vocab_size + 1)
    drawn = {
        "do_sample": st.sampled_from([True, True, True, False]),
        "temperature": st.sampled_from([1.0, 0.7, 1.3, 1e-6, 0.01]),
        "top_p": st.sampled_from([1.0, 1.0, 0.9, 0.5, 0.01, 1e-9]),
        "top_k": st.sampled_from([-1, -1, 1, 2, 20, vocab_size, vocab_size + 5]),
        "min_p": st.sampled_from([0.0, 0.0, 0.05, 0.5, 1.0]),
    }
    edited = {
        "presence_penalty": st.sampled_from([0.0, 0.7]),
        "frequency_penalty": st.sampled_from([0.0, 0.3]),
        "repetition_penalty": st.sampled_from([1.0, 1.3]),
        "exponential_decay_length_penalty": st.sampled_from([(1, 1.0), (2, 1.7), (0, 1e6)]),
        "input_penalty": st.booleans(),
        "min_new_tokens": st.sampled_from([1, 6]),
        "logit_bias": st.dictionaries(ids, st.sampled_from([-100.0, 0.5, 3.0]), max_size=3),
        "allowed_token_ids": st.lists(ids, max_size=6).map(tuple),
    }
    seed = st.sampled_from([0, 1, 2**40 + 3, 2**63 - 1])
    return st.fixed_dictionaries({"seed": seed, **drawn}, optional=edited)


@st.composite
def rows(draw: st.DrawFn, vocab_size: int) -> SamplingRow:
    """One row. Its tokens are of the vocabulary, its EOS ids may be not."""
    tokens = st.lists(st.integers(0, vocab_size - 1), max_size=8)
    eos = st.lists(st.integers(0, vocab_size + 1), max_size=2)
    num_bytes = -(-vocab_size // 32) * 4
    bits = st.none() | st.binary(min_size=num_bytes, max_size=num_bytes)
    return SamplingRow(SamplingParams(**draw(params(vocab_size))), draw(tokens), draw(tokens), draw(eos), draw(bits))


def logits_of(kinds: Sequence[str], vocab_size: int, seed: int) -> Tensor:
    """One row of logits per kind, float32."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(kinds), vocab_size, generator=generator) * 3
    bad = int(torch.randint(vocab_size, (1,), generator=generator))
    for row, kind in zip(logits, kinds, strict=True):
        if kind == "peaked":
            row *= 10
        elif kind == "ties":
            row.round_()
        elif kind == "flat":
            row.zero_()
        elif kind == "masked":
            row[torch.rand(vocab_size, generator=generator) < 0.7] = -math.inf
        elif kind == "nan":
            row[bad] = math.nan
        elif kind == "inf":
            row[bad] = math.inf
        elif kind == "none":
            row.fill_(-math.inf)
        elif kind == "huge":
            row *= 1e37
    return logits


def assert_same_choices(ours: list[Sampled], wanted: list[Sampled]) -> None:
    """The same tokens and errors; logprobs within 1e-5."""
    assert [sampled.token_id for sampled in ours] == [sampled.token_id for sampled in wanted]
    assert [sampled.error for sampled in ours] == [sampled.error for sampled in wanted]
    assert [sampled.logprob for sampled in ours] == pytest.approx(
        [sampled.logprob for sampled in wanted], rel=1e-5, abs=1e-5
    )
