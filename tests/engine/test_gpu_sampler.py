"""The GPU's sampler under the interpreter: it chooses what the CPU's does, whatever the rows want."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import gpu_sampler, sampler
from engine.sampler import SamplingRow, select_sampler
from messages.request import SamplingParams
from tests.sampling_rows import KINDS, assert_same_choices, logits_of, rows

pytestmark = pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # numpy's word, in the interpreter
VOCAB_SIZES = (1, 5, 67, 301)


@given(data=st.data(), vocab_size=st.sampled_from(VOCAB_SIZES), seed=st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_the_same_choices(data: st.DataObject, vocab_size: int, seed: int) -> None:
    batch = data.draw(st.lists(rows(vocab_size), max_size=5))
    kinds = [data.draw(st.sampled_from(KINDS)) for _ in batch]
    logits = logits_of(kinds, vocab_size, seed)
    before = logits.clone()
    assert_same_choices(gpu_sampler.sample(logits, batch), sampler.sample(logits, batch))
    torch.testing.assert_close(logits, before, rtol=0, atol=0, equal_nan=True)


def row(seed: int = 0, output: int = 0, **params: Any) -> SamplingRow:
    return SamplingRow(SamplingParams(seed=seed, **params), [3, 4], [1, 2] * output, (2,))


MIXED = [
    row(),
    row(1, do_sample=True),
    row(2, do_sample=True, top_p=0.8, temperature=0.9),
    row(3, do_sample=True, top_k=5),
    row(4, do_sample=True, min_p=0.2, top_p=0.9),
    row(5, 3, do_sample=True, frequency_penalty=0.5, repetition_penalty=1.2, min_new_tokens=9),
    row(6, 2, allowed_token_ids=(5, 7, 2), logit_bias={7: 2.0, 1: 50.0}, exponential_decay_length_penalty=(1, 1.5)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_large_vocabulary(dtype: torch.dtype) -> None:
    logits = logits_of(["smooth", "ties", "smooth", "ties", "smooth", "ties", "masked"], 3003, 1).to(dtype)
    assert_same_choices(gpu_sampler.sample(logits, MIXED), sampler.sample(logits, MIXED))


def test_a_row_does_not_depend_on_its_batch() -> None:
    logits = logits_of(["smooth"] * len(MIXED), 131, 3)
    together = gpu_sampler.sample(logits, MIXED)
    assert [gpu_sampler.sample(logits[i : i + 1], MIXED[i : i + 1])[0] for i in range(len(MIXED))] == together


def test_a_row_without_probabilities_harms_no_other() -> None:
    kinds = ["smooth", "nan", "smooth", "inf", "none", "smooth", "smooth"]
    chosen = gpu_sampler.sample(logits_of(kinds, 67, 5), MIXED)
    assert [bool(one.error) for one in chosen] == [kind in ("nan", "inf", "none") for kind in kinds]


def test_logits_and_rows_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="2 rows of logits for 1 sampling rows"):
        gpu_sampler.sample(torch.zeros(2, 3), [row()])
    assert gpu_sampler.sample(torch.zeros(0, 3), []) == []


def test_it_is_the_sampler_of_cuda_devices_only() -> None:
    assert select_sampler(torch.device("cuda", 1)) is gpu_sampler.sample
    assert select_sampler(torch.device("cpu")) is sampler.sample
