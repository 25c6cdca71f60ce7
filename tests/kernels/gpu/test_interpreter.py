"""The interpreter that judges our kernels: its bfloat16 is torch's, and planted faults are found."""

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.errors import InterpreterError

from bench.kernels.interpreter import watched
from tests.kernels.gpu.drawn import randn

SIZE = 64


@triton.jit  # type: ignore[untyped-decorator]
def _compute(x_ptr, y_ptr, out_ptr, OPERATION: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    columns = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + columns)
    y = tl.load(y_ptr + columns)
    if OPERATION == "add":
        out = x + y
    elif OPERATION == "mul":
        out = x * y
    elif OPERATION == "max":
        out = tl.maximum(x, y)
    elif OPERATION == "where":
        out = tl.where(x > y, x, -y)
    elif OPERATION == "cast":
        out = x.to(tl.float32).to(tl.bfloat16)
    elif OPERATION == "half":
        out = x.to(tl.float16).to(tl.bfloat16)
    else:
        out = tl.sum(x.to(tl.float32), axis=0).to(tl.bfloat16) + tl.zeros_like(x)
    tl.store(out_ptr + columns, out)


@pytest.mark.parametrize(
    ("operation", "wanted"),
    [
        ("add", lambda x, y: x + y),
        ("mul", lambda x, y: x * y),
        ("max", torch.maximum),
        ("where", lambda x, y: torch.where(x > y, x, -y)),
        ("cast", lambda x, y: x),
        ("half", lambda x, y: x.half().bfloat16()),
        ("sum", lambda x, y: x.float().sum().bfloat16().expand(SIZE)),
    ],
)
def test_bfloat16_is_torchs_bit_for_bit(operation: str, wanted: object) -> None:
    x, y = (randn(SIZE, dtype=torch.bfloat16, seed=seed, scale=3.0) for seed in (1, 2))
    out = torch.empty_like(x)
    _compute[(1,)](x, y, out, operation, SIZE)
    assert torch.equal(out, wanted(x, y))  # type: ignore[operator]


@triton.jit  # type: ignore[untyped-decorator]
def _dot(x_ptr, y_ptr, out_ptr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    places = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    tl.store(out_ptr + places, tl.dot(tl.load(x_ptr + places), tl.load(y_ptr + places)))


def test_products_of_bfloat16() -> None:
    x, y = (randn(16, 16, dtype=torch.bfloat16, seed=seed) for seed in (1, 2))
    out = torch.empty(16, 16)
    _dot[(1,)](x, y, out, 16)
    torch.testing.assert_close(out, x.float() @ y.float(), rtol=1e-6, atol=1e-6)


@triton.jit  # type: ignore[untyped-decorator]
def _copy(source_ptr, place_ptr, target_ptr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    columns = tl.arange(0, BLOCK)
    place = tl.load(place_ptr + tl.program_id(0))
    tl.store(target_ptr + place * BLOCK + columns, tl.load(source_ptr + place * BLOCK + columns))


def copied(places: list[int], source: Tensor) -> Tensor:
    target = torch.zeros_like(source)
    where = torch.tensor(places)
    with watched(source, where, target):
        _copy[(len(places),)](source, where, target, 16)
    return target


def test_what_is_in_bounds_and_apart_passes() -> None:
    source = randn(4, 16, dtype=torch.float32, seed=1)
    assert torch.equal(copied([2, 0, 3, 1], source), source)


def test_a_bad_index_is_found_with_its_program() -> None:
    with pytest.raises(InterpreterError, match=r"OutOfBounds.*load of program \(1, 0, 0\): 16 of 16 addresses"):
        copied([0, 9999], randn(4, 16, dtype=torch.float32, seed=1))


def test_two_programs_at_one_address_are_found() -> None:
    with pytest.raises(InterpreterError, match=r"WriteRace.*programs \(0, 0, 0\) and \(2, 0, 0\)"):
        copied([1, 0, 1], randn(4, 16, dtype=torch.float32, seed=1))


def test_the_next_launch_may_write_there_again() -> None:
    source, where, target = randn(1, 16, dtype=torch.float32, seed=1), torch.tensor([0]), torch.zeros(1, 16)
    with watched(source, where, target):
        for _ in range(2):
            _copy[(1,)](source, where, target, 16)
    assert torch.equal(target, source)
