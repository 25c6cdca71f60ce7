"""Products with panels: every kind on every instruction set that this CPU has, and AMX by an emulation of its tiles."""

import ctypes
import itertools
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kernels import cpu_build, panels
from kernels.cores import use_cores
from kernels.cpu_linear import PanelLinear
from kernels.panels import Codes, Kind, PanelMatrix

# As in isa.h.
ISAS = {"avx2": 1, "avx512": 2, "avx512_vnni": 3, "avx512_bf16": 4, "amx": 5}
SHAPES = [(10, 17), (576, 96), (33, 49), (1, 1), (2112, 40)]
# Every height of a tile, more than one tile, many rows of several blocks.
ROWS = [*range(1, 20), 31, 32, 33, 47, 64, 100, 300]


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    library = cpu_build.load()
    if library is None:
        pytest.skip("no C++ compiler here, or no AVX2")
    return library


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The same sources with the tile instructions as loops."""
    compiler, work = cpu_build._compiler(), tmp_path_factory.mktemp("emulated")
    if compiler is None:
        pytest.skip("no C++ compiler here")
    path = work / "emulated.so"
    sources = map(str, cpu_build._sources(".cpp"))
    command = [compiler, *cpu_build.FLAGS, "-O1", "-DPDQ_EMULATED_TILES", "-shared", *sources, "-o", str(path)]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(path))


@pytest.fixture(params=ISAS)
def linears(request: pytest.FixtureRequest) -> Iterator[PanelLinear]:
    wanted = ISAS[request.param]
    is_emulated = request.param == "amx" and request.getfixturevalue("library").pdq_use_isa(wanted) != wanted
    library = request.getfixturevalue("emulated" if is_emulated else "library")
    if library.pdq_use_isa(wanted) != wanted:
        pytest.skip(f"this CPU has no {request.param}")
    if is_emulated and library.pdq_use_isa(-1) < ISAS["avx512_vnni"]:
        pytest.skip("integer kinds of AMX machines are multiplied with VNNI")
    library.pdq_use_isa(wanted)
    yield PanelLinear(library)
    library.pdq_use_isa(-1)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def matrix_of(linears: PanelLinear, kind: Kind, ins: int, outs: int) -> PanelMatrix:
    weight = randn(outs, ins, seed=1)
    return linears.pack(weight) if kind is Kind.BF16 else linears.packer.pack_codes(panels.quantize(weight, kind))


def assert_is_the_product(out: Tensor, x: Tensor, matrix: PanelMatrix, bias: Tensor | None = None) -> None:
    wanted = panels.linear(x, matrix, bias)
    size = x.double().abs() @ panels.unpack(matrix).double().abs().T + (0 if bias is None else bias.double().abs())
    assert out.shape == wanted.shape
    # One rounding to bfloat16, and that of float sums.
    assert ((out.double() - wanted).abs() <= wanted.abs() / 256 + 4e-6 * size).all()


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize(("ins", "outs"), SHAPES)
def test_is_the_twins_product_and_a_row_has_the_same_bits_in_any_company(
    linears: PanelLinear, kind: Kind, ins: int, outs: int
) -> None:
    matrix, x, bias = matrix_of(linears, kind, ins, outs), randn(max(ROWS), ins), randn(outs, seed=2)
    whole = linears.linear(x, matrix, bias)
    assert_is_the_product(whole, x, matrix, bias)
    for num_rows in ROWS:
        first = max(ROWS) - num_rows
        assert torch.equal(linears.linear(x[first:], matrix, bias), whole[first:]), num_rows


@pytest.mark.parametrize("kind", list(Kind))
def test_two_threads_give_the_same_bits(linears: PanelLinear, kind: Kind) -> None:
    # Large enough for a second thread already at one row.
    matrix, x = matrix_of(linears, kind, 2080, 4000), randn(40, 2080)
    try:
        for num_rows in (1, 40):
            use_cores(linears.library, 1, None)
            one = linears.linear(x[:num_rows], matrix, None)
            assert_is_the_product(one, x[:num_rows], matrix)
            use_cores(linears.library, 2, None)
            assert torch.equal(linears.linear(x[:num_rows], matrix, None), one)
    finally:
        use_cores(linears.library, 1, None)


@pytest.mark.parametrize("kind", [Kind.INT8, Kind.INT4])
def test_integer_kinds_have_the_same_bits_on_every_instruction_set(library: ctypes.CDLL, kind: Kind) -> None:
    linears = PanelLinear(library)
    matrix, x = matrix_of(linears, kind, 1000, 100), randn(50, 1000)
    results = []
    for isa in ISAS.values():
        if library.pdq_use_isa(isa) == isa:
            results.append(linears.linear(x, matrix, None))
    library.pdq_use_isa(-1)
    assert all(torch.equal(one, other) for one, other in itertools.pairwise(results))


def test_the_largest_codes_and_values_do_not_overflow(linears: PanelLinear) -> None:
    ins = 320
    x = torch.ones(3, ins).bfloat16()
    x[1] = -x[1]
    halves = torch.ones(16, ins // 32).half()
    for code in (-128, -127, 127):
        matrix = linears.packer.pack_codes(Codes(torch.full((16, ins), code, dtype=torch.int8), halves, None))
        assert_is_the_product(linears.linear(x, matrix, None), x, matrix)
    matrix = linears.packer.pack_codes(Codes(torch.full((16, ins), 15, dtype=torch.uint8), halves, -halves))
    assert_is_the_product(linears.linear(x, matrix, None), x, matrix)


@pytest.mark.parametrize("kind", list(Kind))
def test_what_is_not_finite_is_not_lost(linears: PanelLinear, kind: Kind) -> None:
    matrix = matrix_of(linears, kind, 70, 20)
    for value in (torch.nan, torch.inf):
        x = randn(3, 70)
        x[1, 69] = value
        out = linears.linear(x, matrix, None)
        assert not out[1].isfinite().any()
        assert out[[0, 2]].isfinite().all()


@pytest.mark.parametrize("value", [0.0, 1e-38, 1e38])
def test_rows_of_the_smallest_and_the_largest_numbers(linears: PanelLinear, value: float) -> None:
    x = torch.full((2, 64), value).bfloat16()
    matrix = linears.packer.pack_codes(Codes(torch.ones(5, 64, dtype=torch.int8), torch.ones(5, 2).half() / 64, None))
    wanted = 0.0 if value < 1e-30 else value
    torch.testing.assert_close(linears.linear(x, matrix, None).float(), torch.full((2, 5), wanted), rtol=0.01, atol=0)


@pytest.mark.parametrize("kind", [Kind.INT8, Kind.INT4])
@pytest.mark.parametrize(("ins", "outs"), SHAPES)
def test_expanded_panels_are_the_weight_rounded_once(
    linears: PanelLinear, library: ctypes.CDLL, kind: Kind, ins: int, outs: int
) -> None:
    matrix = matrix_of(linears, kind, ins, outs)
    expanded = linears.pack(torch.ones(outs, ins).bfloat16())
    library.pdq_expand(ctypes.byref(matrix.native), ctypes.c_void_p(expanded.panels.data_ptr()))
    assert torch.equal(panels.unpack(expanded), panels.unpack(matrix).bfloat16())


def test_quantized_rows_are_the_twins(library: ctypes.CDLL) -> None:
    x = randn(500, 75) * 3
    x[2, :32] = 0
    groups = panels.num_groups(75)
    library.pdq_quantized_row_bytes.restype = ctypes.c_int64
    row_bytes = library.pdq_quantized_row_bytes(ctypes.c_int64(75))
    rows = torch.zeros(500, row_bytes, dtype=torch.uint8)
    pointers = ctypes.c_void_p(x.data_ptr()), ctypes.c_int64(75), ctypes.c_int64(500), ctypes.c_int64(75)
    library.pdq_quantize_rows(*pointers, ctypes.c_void_p(rows.data_ptr()))
    values, scales = panels.quantize_rows(x)
    assert torch.equal(rows[:, : groups * 32].view(torch.int8).view(500, groups, 32), values)
    floats = rows[:, groups * 32 : groups * 44].contiguous().view(torch.float32).view(500, 3, groups)
    assert torch.equal(floats[:, 0], scales)
    assert torch.equal(floats[:, 1], scales * values.sum(-1))
    assert torch.equal(floats[:, 2].contiguous().view(torch.int32), -128 * values.int().sum(-1, dtype=torch.int32))


@pytest.mark.parametrize("kind", [Kind.INT8, Kind.INT4])
@pytest.mark.parametrize(("ins", "outs"), SHAPES)
def test_codes_come_back_from_panels(library: ctypes.CDLL, kind: Kind, ins: int, outs: int) -> None:
    given = panels.quantize(randn(outs, ins), kind)
    found = panels.unpack_codes(PanelLinear(library).packer.pack_codes(given))
    assert torch.equal(found.codes, given.codes) and torch.equal(found.scales, given.scales)
    if given.minima is None:
        assert found.minima is None
    else:
        assert found.minima is not None and torch.equal(found.minima, given.minima)


@pytest.mark.parametrize(("kind", "steps"), [(Kind.INT8, 254), (Kind.INT4, 15)])
def test_quantizing_errs_by_half_a_step(kind: Kind, steps: int) -> None:
    weight = randn(20, 75).float()
    error = (panels.dequantize(panels.quantize(weight, kind)) - weight).abs()
    groups = torch.nn.functional.pad(weight, (0, 21)).view(20, 3, 32)
    width = 2 * groups.abs().amax(-1) if kind is Kind.INT8 else groups.amax(-1) - groups.amin(-1)
    limit = (width / steps * 0.51 + 2e-3).repeat_interleave(32, 1)[:, :75]
    assert (error <= limit).all()


def test_panels_may_lie_in_a_mapped_file(library: ctypes.CDLL, tmp_path: Path) -> None:
    linears = PanelLinear(library)
    packed, x = matrix_of(linears, Kind.INT4, 64, 40), randn(2, 64)
    (tmp_path / "panels").write_bytes(bytes(128) + packed.panels.numpy().tobytes())
    mapped = torch.from_file(str(tmp_path / "panels"), size=128 + packed.panels.numel(), dtype=torch.uint8)
    matrix = PanelMatrix(mapped[128:], packed.kind, packed.ins, packed.outs)
    assert torch.equal(linears.linear(x, matrix, None), linears.linear(x, packed, None))
