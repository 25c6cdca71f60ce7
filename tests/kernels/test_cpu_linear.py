"""The C++ linear against a product in float64, and its promise: a row's bits depend on the row and the weight only."""

import ctypes
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import cpu_build
from kernels.cores import use_cores
from kernels.cpu_linear import FloatLinear, PanelLinear

Linears = Any  # FloatLinear or PanelLinear, each with its own weights
DTYPES = [torch.float32, torch.bfloat16]
# Of one rounding to the type, plus that of float sums.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 5e-3}


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    library = cpu_build.load()
    if library is None:
        pytest.skip("no C++ compiler here, or no AVX2")
    return library


@pytest.fixture(params=DTYPES, ids=str)
def linears(library: ctypes.CDLL, request: pytest.FixtureRequest) -> Linears:
    return FloatLinear(library) if request.param == torch.float32 else PanelLinear(library)


@pytest.fixture(autouse=True)
def one_thread_after(library: ctypes.CDLL) -> Iterator[None]:
    yield
    use_cores(library, 1, None)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("num_rows", range(1, 34))
@pytest.mark.parametrize(("ins", "outs"), [(61, 37), (64, 16), (1, 1), (7, 100)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_is_the_product(linears: Linears, num_rows: int, ins: int, outs: int, with_bias: bool) -> None:
    x, weight = randn(num_rows, ins, dtype=linears.dtype), randn(outs, ins, seed=1, dtype=linears.dtype)
    bias = randn(outs, seed=2, dtype=linears.dtype) if with_bias else None
    out = linears.linear(x, linears.pack(weight), bias)
    wanted = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    assert out.dtype == linears.dtype and out.shape == (num_rows, outs)
    # The sums of a row are of products this large; what cancels is lost.
    size = x.double().abs() @ weight.double().abs().T + (0 if bias is None else bias.double().abs())
    assert ((out.double() - wanted).abs() <= TOLERANCE[linears.dtype] * size).all()


def test_large_blocks_of_rows(linears: Linears) -> None:
    x, weight = randn(300, 1200, dtype=linears.dtype), randn(48, 1200, seed=1, dtype=linears.dtype) / 32
    out = linears.linear(x, linears.pack(weight), None)
    torch.testing.assert_close(out.double(), x.double() @ weight.double().T, atol=2e-2, rtol=1e-2)


def test_a_row_has_the_same_bits_in_any_company_and_on_any_number_of_threads(linears: Linears) -> None:
    # Large enough for a second thread already at one row.
    x, weight = randn(200, 1030, dtype=linears.dtype), linears.pack(randn(1100, 1030, seed=1, dtype=linears.dtype))
    bias = randn(1100, seed=2, dtype=linears.dtype)
    use_cores(linears.library, 1, None)
    wanted = linears.linear(x, weight, bias)
    for threads in (1, 2):
        use_cores(linears.library, threads, None)
        for num_rows in (*range(1, 34), 48, 100, 200):
            for first in (0, 200 - num_rows):
                rows = slice(first, first + num_rows)
                assert torch.equal(linears.linear(x[rows], weight, bias), wanted[rows]), (threads, num_rows)


def test_rows_may_lie_apart(linears: Linears) -> None:
    x, weight = randn(5, 90, dtype=linears.dtype), linears.pack(randn(20, 30, seed=1, dtype=linears.dtype))
    assert torch.equal(
        linears.linear(x[:, 30:60], weight, None), linears.linear(x[:, 30:60].contiguous(), weight, None)
    )


def test_a_weight_need_not_be_contiguous(linears: Linears) -> None:
    weight, x = randn(30, 20, dtype=linears.dtype), randn(3, 30, dtype=linears.dtype)
    packed, copied = linears.pack(weight.T), linears.pack(weight.T.contiguous())
    assert torch.equal(linears.linear(x, packed, None), linears.linear(x, copied, None))


def test_what_it_cannot_take_is_refused(linears: Linears) -> None:
    weight = linears.pack(randn(20, 30, dtype=linears.dtype))
    for x in (randn(3, 30).half(), randn(30, 3, dtype=linears.dtype).T, randn(3, 31, dtype=linears.dtype)):
        with pytest.raises(AssertionError):
            linears.linear(x, weight, None)


def test_rounds_to_nearest_even_and_keeps_what_is_not_finite(library: ctypes.CDLL) -> None:
    linears = PanelLinear(library)
    # Products with 1 + 2^-7 and the like give every way a tail can lie between two bfloat16 values.
    x = torch.tensor([[1 + i / 128] for i in range(128)] + [[torch.inf], [-torch.inf], [torch.nan]]).bfloat16()
    weight = torch.tensor([[1 + i / 128] for i in range(128)]).bfloat16()
    wanted = (x.float() * weight.float().T).bfloat16()  # exact in float32, so this rounds once, as we do
    out = linears.linear(x, linears.pack(weight), None)
    assert torch.equal(out.nan_to_num(nan=7.0), wanted.nan_to_num(nan=7.0))
    assert out[-1].isnan().all()
