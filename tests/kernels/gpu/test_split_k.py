"""Sums of partial sums under the interpreter against torch's, and how many there are."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.gpu.split_k import choose_num_splits, sum_splits
from tests.kernels.gpu.agree import TOLERANCE, assert_agrees
from tests.kernels.gpu.drawn import dtypes, randn, seeds


@given(
    splits=st.integers(1, 5),
    tokens=st.integers(1, 3),
    num_outputs=st.integers(1, 1100),
    has_bias=st.booleans(),
    dtype=dtypes,
    seed=seeds,
)
@settings(max_examples=12, deadline=None)
def test_drawn(splits: int, tokens: int, num_outputs: int, has_bias: bool, dtype: torch.dtype, seed: int) -> None:
    partial = randn(splits, tokens, num_outputs, dtype=torch.float32, seed=seed)
    bias = randn(num_outputs, dtype=dtype, seed=seed + 1) if has_bias else None

    def twin(partial: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        return (partial.sum(dim=0) + (0 if bias is None else bias.float())).to(dtype)

    assert_agrees(sum_splits, twin, (partial, bias, dtype), TOLERANCE[dtype])


@given(programs=st.integers(1, 5000), turns=st.integers(1, 500), multiprocessors=st.integers(1, 160))
def test_every_split_has_two_turns_and_none_is_more_than_needed(
    programs: int, turns: int, multiprocessors: int
) -> None:
    splits = choose_num_splits(programs, turns, multiprocessors)
    assert splits in (1, 2, 4, 8, 16)
    assert splits == 1 or (turns // splits >= 2 and programs * splits <= 2 * multiprocessors)
