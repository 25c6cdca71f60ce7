"""The bound of a launch on figures that can be divided by hand."""

from dataclasses import replace

import pytest

from bench.kernels.__main__ import main
from bench.kernels.case import CAPABILITIES, FLOAT8_CAPABILITIES, KernelCase
from bench.kernels.families import FAMILIES, cases_of
from bench.kernels.gpu_types import GPU_TYPES, GpuType, type_of
from bench.kernels.occupancy import MULTIPROCESSORS
from bench.kernels.roofline import bound, intensity, roofline_table

GPU = GpuType(("Round GPU",), 80, memory_gb_s=1000, tensor_tflops=100, vector_tflops=10, source="made up")
CASE = KernelCase("family", "case", lambda inputs: (), lambda: [], lambda: [], 0, traffic_bytes=2_000_000, flops=0)


@pytest.mark.parametrize(
    ("flops", "on_tensor_cores", "us", "by"),
    [
        (0, False, 2.0, "memory"),  # 2 MB at 1 MB a us
        (19_000_000, False, 2.0, "memory"),  # 1.9 us of float32
        (30_000_000, False, 3.0, "float32 units"),
        (30_000_000, True, 2.0, "memory"),  # 0.3 us of tensor cores
        (500_000_000, True, 5.0, "tensor cores"),
    ],
)
def test_the_slower_of_both_bounds(flops: int, on_tensor_cores: bool, us: float, by: str) -> None:
    found = bound(replace(CASE, flops=flops, on_tensor_cores=on_tensor_cores), GPU)
    assert found.us == pytest.approx(us) and found.by == by


def test_a_known_case() -> None:
    """Llama 3 8B, 16 sequences of 768 tokens on average: 2 * 768 * 8 * 128 elements of KV each, q and out beside."""
    (case,) = [case for case in cases_of("attention_decode") if case.name.startswith("Llama 3 8B")]
    assert case.traffic_bytes == 16 * (2 * 768 * 8 * 128 + 2 * 32 * 128) * 2
    assert case.flops == 16 * 4 * 768 * 32 * 128
    assert intensity(case) == pytest.approx(3.98, abs=0.01)
    least = bound(case, GPU_TYPES["h200"])
    assert least.us == pytest.approx(10.54, abs=0.01) and least.by == "memory"


def test_the_table_has_a_row_per_case_and_no_bound_where_it_cannot_run() -> None:
    float8 = replace(CASE, name="float8", capabilities=FLOAT8_CAPABILITIES, flops=1_000_000)
    lines = roofline_table([CASE, float8], {"round": GPU, "h100": GPU_TYPES["h100"]}).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (lines[0], *lines[2:])]
    assert cells == [
        ["family", "case", "MB", "MFLOP", "FLOP/B", "round", "h100"],
        ["family", "case", "2.00", "0.0", "0.0", "2.00 us, memory", "0.60 us, memory"],
        ["family", "float8", "2.00", "1.0", "0.5", "-", "0.60 us, memory"],
    ]


def test_every_type_is_known_by_its_drivers_name_and_has_limits() -> None:
    for gpu in GPU_TYPES.values():
        assert type_of(gpu.device_names[0]) is gpu
        assert gpu.capability in MULTIPROCESSORS
        assert gpu.vector_tflops < gpu.tensor_tflops
    assert type_of("NVIDIA H100 PCIe") is None, "another product, with other figures"
    assert {gpu.capability for gpu in GPU_TYPES.values()} >= set(CAPABILITIES)


def test_every_production_case_moves_bytes_and_matrices_are_on_tensor_cores() -> None:
    cases = [case for family in FAMILIES for case in cases_of(family)]
    assert all(case.traffic_bytes > 0 for case in cases)
    assert {case.family for case in cases if case.on_tensor_cores} == {"attention_decode", "attention_prefill"}


def test_the_command_names_its_sources(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["bench.kernels", "roofline", "--gpu", "b200", "--family", "silu_mul"])
    main()
    table, _, sources = capsys.readouterr().out.partition("\n\n")
    assert len(table.splitlines()) == 2 + len(cases_of("silu_mul"))
    assert sources == f"b200: {GPU_TYPES['b200'].source}\n"
