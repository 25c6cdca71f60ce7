"""The table of kernels from figures made up; and the small cases, which its first column is about."""

import pytest

from bench.kernels.compiled import CompiledKernel
from bench.kernels.families import FAMILIES
from bench.kernels.interpreted import InterpretedCase, interpret
from bench.kernels.kernel_table import kernel_table


@pytest.mark.parametrize("family", FAMILIES)
def test_small_cases_agree_under_the_interpreter(family: str) -> None:
    cases = list(interpret(family))
    assert cases
    assert [one for one in cases if not one.error <= one.tolerance] == []


def test_a_cell_is_the_worst_of_a_kernels_cases() -> None:
    light = CompiledKernel("_kernel", 80, 32, 0, 0, 8, {"LDG.E.128.CONSTANT": 2})
    heavy = CompiledKernel("_kernel", 80, 64, 16, 2048, 8, {"HMMA.16816.F32.BF16": 4, "LDGSTS.E.BYPASS.128": 1})
    other = CompiledKernel("_merge", 90, 32, 0, 0, 1, {"MOV": 1})
    interpreted = [InterpretedCase("family", "a", 0.5, 1.0), InterpretedCase("family", "b", 0.25, 1.0)]
    lines = kernel_table({"family": [light, heavy, other]}, interpreted, (80, 90)).splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
    assert rows == [
        [
            *("family", "_kernel", "5.0e-01 of 1"),
            *("64 reg, 2.0 KiB, 16 B spilled, occupancy 50%; HMMA LDGSTS LDG.128", "-"),
        ],
        [
            *("family", "_merge", "5.0e-01 of 1", "-"),
            "32 reg, 0.0 KiB, 0 B spilled, occupancy 50%; none of the key opcodes",
        ],
    ]
