"""The sampling kernels under the interpreter, piece by piece: edits, masses, noise, and the choice on small tiles."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bench.kernels.interpreter import watched
from engine.gpu_sampler import sampling_inputs
from engine.penalties import apply_penalties
from engine.philox import gumbel, random_words
from engine.sampler import SamplingRow, is_greedy, sample, to_sampled
from kernels.gpu import logit_edit, sampling
from kernels.gpu.sampling_inputs import SamplingInputs
from kernels.softmax_mass import softmax_mass
from messages.request import SamplingParams
from tests.sampling_rows import KINDS, assert_same_choices, logits_of, rows

pytestmark = pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # numpy's word, in the interpreter
CPU = torch.device("cpu")
SIZE = 1024
MAX_WORD = (1 << 32) - 1


@triton.jit  # type: ignore[untyped-decorator]
def _mass_kernel(below_ptr, out_ptr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    lanes = tl.arange(0, BLOCK)
    tl.store(out_ptr + lanes, sampling._mass(tl.load(below_ptr + lanes)))


@triton.jit  # type: ignore[untyped-decorator]
def _gumbel_kernel(seed, token_index, out_ptr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    tl.store(out_ptr + tl.arange(0, BLOCK), sampling._gumbel(seed, token_index.to(tl.int64), 8, BLOCK))


@given(st.lists(st.floats(-45.0, 0.0, width=32), min_size=1, max_size=SIZE), st.sampled_from([1.0, 1e-3, 1e-38, 1e6]))
@settings(max_examples=15, deadline=None)
def test_masses_are_the_twins_to_the_last_unit(drawn: list[float], scale: float) -> None:
    below = torch.linspace(-45.0, 0.0, SIZE)
    below[: len(drawn)] = torch.tensor(drawn)
    below *= scale
    out = torch.empty(SIZE, dtype=torch.int64)
    _mass_kernel[(1,)](below, out, SIZE)
    assert torch.equal(out, softmax_mass(below, torch.zeros(1)))


@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_noise_is_the_twins_but_for_a_library_s_rounding(seed: int) -> None:
    out = torch.empty(SIZE, dtype=torch.float64)
    _gumbel_kernel[(1,)](seed, 33, out, SIZE)
    wanted = gumbel(random_words(torch.tensor([seed]), torch.tensor([33]), SIZE + 8))[0, 8:]
    assert (out - wanted).abs().max() < 1e-14


def test_logarithms_of_two_libraries_differ_by_less_than_neighbouring_noise() -> None:
    """What `engine.sampler` says of another library: noise apart by 1e-14 at most, while words apart are 5e-10."""
    words = torch.cat([torch.arange(1 << 14), torch.arange(0, 1 << 32, 65521), MAX_WORD - torch.arange(1 << 14)])
    ours = gumbel(words)
    theirs = -np.log(-np.log((words.numpy() + 0.5) * 2.0**-32))
    assert np.abs(ours.numpy() - theirs).max() < 1e-14
    assert (gumbel(words + 1) - ours)[words < MAX_WORD].min() > 5e-10


@given(data=st.data(), vocab_size=st.sampled_from([3, 40, 130]), seed=st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_edits_are_the_penalties_and_the_temperature(data: st.DataObject, vocab_size: int, seed: int) -> None:
    drawn = data.draw(st.lists(rows(vocab_size), min_size=1, max_size=4))
    batch = [replace(row, allowed_bits=None) for row in drawn]  # a grammar's bits have a kernel of their own
    logits = logits_of([data.draw(st.sampled_from(KINDS)) for _ in batch], vocab_size + 3, seed)[:, :vocab_size]
    assert_edited(logits, batch)


EVERYTHING = {
    "logit_bias": {2: 4.0, 5: -1.0},
    "allowed_token_ids": (1, 2, 5, 99),
    "presence_penalty": 0.3,
    "frequency_penalty": 0.7,
    "repetition_penalty": 1.3,
    "input_penalty": True,
    "exponential_decay_length_penalty": (1, 1.5),
    "min_new_tokens": 9,
}


@pytest.mark.parametrize(
    "names", [*([name] for name in EVERYTHING if name != "input_penalty"), list(EVERYTHING)], ids=str
)
def test_each_edit(names: list[str]) -> None:
    params: dict[str, Any] = {name: EVERYTHING[name] for name in names}
    batch = [SamplingRow(SamplingParams(0, **params), (4, 5), (1, 2, 1), (2, 6))] * 3
    logits = logits_of(["smooth", "ties", "masked"], 10, 1)
    assert not torch.equal(assert_edited(logits, batch), logits)


def test_no_rows_are_no_launch() -> None:
    logits = torch.empty(0, 10)
    inputs = sampling_inputs([SamplingRow(SamplingParams(0), (), (), ())], 10, CPU)
    assert logit_edit.edit(logits, inputs).shape == (0, 10)
    assert sampling.choose(logits, inputs).shape == (0, 2)


def assert_edited(logits: Tensor, batch: list[SamplingRow]) -> Tensor:
    inputs = sampling_inputs(batch, logits.shape[1], CPU)
    with watched(logits, *tensors_of(inputs)):
        edited = logit_edit.edit(logits, inputs)
    wanted = logits.clone()
    apply_penalties(wanted, batch)
    for own, row in zip(wanted, batch, strict=True):
        own.div_(torch.tensor(1.0 if is_greedy(row.params) else row.params.temperature))
    torch.testing.assert_close(edited, wanted, rtol=0, atol=0, equal_nan=True)
    return edited


def tensors_of(inputs: SamplingInputs) -> list[Tensor]:
    values = (getattr(inputs, name) for name in inputs.__slots__)
    return [value for value in values if isinstance(value, Tensor)]


def chosen(scaled: Tensor, batch: list[SamplingRow], tile: int, finish_tile: int) -> list[list[float]]:
    inputs = sampling_inputs(batch, scaled.shape[1], CPU)
    with watched(scaled, *tensors_of(inputs)):
        out: list[list[float]] = sampling.choose(scaled, inputs, tile, finish_tile).tolist()
    return out


limits = st.fixed_dictionaries(
    {
        "top_p": st.one_of(st.just(1.0), st.floats(1e-6, 1.0)),
        "top_k": st.one_of(st.just(-1), st.integers(1, 200)),
        "min_p": st.one_of(st.just(0.0), st.floats(0.0, 1.0)),
    }
)


@given(
    data=st.data(),
    vocab_size=st.sampled_from([2, 31, 64, 200]),
    seed=st.integers(0, 2**31),
    tiles=st.sampled_from([(16, 64), (32, 16), (256, 64)]),
)
@settings(max_examples=30, deadline=None)
def test_the_choice_does_not_depend_on_tiles(
    data: st.DataObject, vocab_size: int, seed: int, tiles: tuple[int, int]
) -> None:
    params: list[dict[str, Any]] = data.draw(st.lists(st.one_of(st.just({}), limits), min_size=1, max_size=3))
    batch = [SamplingRow(SamplingParams(seed + i, bool(one), **one), (), (), ()) for i, one in enumerate(params)]
    scaled = logits_of([data.draw(st.sampled_from(KINDS)) for _ in batch], vocab_size, seed)
    out = chosen(scaled, batch, *tiles)
    ours = to_sampled([int(token_id) for token_id, _ in out], [logprob for _, logprob in out])
    assert_same_choices(ours, sample(scaled, batch))


def test_an_id_whose_mass_before_it_is_the_very_limit_is_kept() -> None:
    batch = [SamplingRow(SamplingParams(seed, True, top_p=0.5), (), (), ()) for seed in range(20)]
    scaled = torch.zeros(20, 4)
    token_ids = [int(token_id) for token_id, _ in chosen(scaled, batch, 16, 16)]
    assert set(token_ids) == {0, 1, 2}
    assert token_ids == [one.token_id for one in sample(scaled, batch)]


def test_a_narrow_limit_on_flat_logits_takes_many_trials() -> None:
    """Each trial halves what is left or better; the last id that can be is 0."""
    batch = [SamplingRow(SamplingParams(seed, True, top_k=1), (), (), ()) for seed in range(4)]
    out = chosen(torch.zeros(4, 500), batch, 128, 256)
    assert [token_id for token_id, _ in out] == [0.0] * 4
    assert [logprob for _, logprob in out] == pytest.approx([-math.log(500)] * 4, abs=1e-6)
