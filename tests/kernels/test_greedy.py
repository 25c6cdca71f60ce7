"""The C++ choice of the largest logit against its twin."""

import ctypes

import pytest
import torch
from torch import Tensor

from kernels import cpu_build
from kernels.greedy import fused_greedy, plain_greedy


@pytest.fixture
def library() -> ctypes.CDLL:
    found = cpu_build.load()
    if found is None:
        pytest.skip("no C++ compiler here, or no AVX2")
    return found


def logits(rows: int, size: int) -> Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(size)) * 4


@pytest.mark.parametrize("size", [1, 7, 8, 49, 95, 96, 97, 263, 49152])  # in spans of 96
@pytest.mark.parametrize("rows", [1, 3, 17])
def test_any_size(library: ctypes.CDLL, rows: int, size: int) -> None:
    given = logits(rows, size)
    ids, logprobs = fused_greedy(library, given)
    wanted_ids, wanted = plain_greedy(given)
    assert torch.equal(ids, wanted_ids)
    torch.testing.assert_close(logprobs, wanted, atol=1e-5, rtol=1e-5)


def test_the_first_of_equals(library: ctypes.CDLL) -> None:
    given = torch.zeros(2, 100)
    given[1, [41, 43, 99]] = 2.0
    assert fused_greedy(library, given)[0].tolist() == plain_greedy(given)[0].tolist() == [0, 41]


def test_the_first_of_equals_of_several_spans(library: ctypes.CDLL) -> None:
    given = torch.zeros(1, 400)
    given[0, [97, 300]] = 2.0
    ids, logprobs = fused_greedy(library, given)
    assert ids.tolist() == [97]
    torch.testing.assert_close(logprobs, plain_greedy(given)[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("place", [0, 5, 48, 49, 140, 299])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_has_no_logprob_and_harms_no_other(
    library: ctypes.CDLL, place: int, value: float
) -> None:
    given = logits(3, 300)
    wanted = fused_greedy(library, given)
    given[1, place] = value
    ids, logprobs = fused_greedy(library, given)
    assert not logprobs[1].isfinite() and not plain_greedy(given)[1][1].isfinite()
    assert torch.equal(ids[[0, 2]], wanted[0][[0, 2]]) and torch.equal(logprobs[[0, 2]], wanted[1][[0, 2]])


def test_minus_infinity_is_passed_over_and_nothing_else_is_no_row(library: ctypes.CDLL) -> None:
    given = torch.full((2, 400), -torch.inf)
    given[0, 213] = -5.0
    ids, logprobs = fused_greedy(library, given)
    assert ids[0] == 213 and logprobs[0] == 0.0
    assert not logprobs[1].isfinite()


def test_rows_apart_in_memory(library: ctypes.CDLL) -> None:
    wide = logits(4, 120)
    ids, logprobs = fused_greedy(library, wide[:, :100])
    wanted = plain_greedy(wide[:, :100])
    assert torch.equal(ids, wanted[0])
    torch.testing.assert_close(logprobs, wanted[1], atol=1e-5, rtol=1e-5)
