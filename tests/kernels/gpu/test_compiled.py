"""The machine code of every family on every architecture: no spills, bounded resources, the right instructions."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.kernels.case import CAPABILITIES
from bench.kernels.families import FAMILIES, cases_of, compiled_for

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    """What `python -m bench.kernels` says, without the interpreter that this process has. CI compiles all cases."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench.kernels", "compile", "--half"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode in (0, 1), done.stderr  # 1: there are faults, which the tests tell apart
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_machine_code(records: list[dict[str, Any]], family: str, capability: int) -> None:
    mine = [record for record in records if (record["family"], record["capability"]) == (family, capability)]
    wanted = [case.name for case in compiled_for(family, capability, is_half=True)]
    assert wanted or all(capability not in case.capabilities for case in cases_of(family))
    assert [record["case"] for record in mine] == wanted
    assert [fault for record in mine for fault in record["faults"]] == []


def test_every_kernel_has_a_case() -> None:
    with_kernels = {
        file.stem
        for file in (ROOT / "kernels" / "gpu").glob("*.py")
        if any(
            isinstance(node, ast.FunctionDef) and any("jit" in ast.unparse(one) for one in node.decorator_list)
            for node in ast.walk(ast.parse(file.read_text()))
        )
    }
    launched = set()
    for family in FAMILIES:
        cases = ast.parse((ROOT / "bench" / "kernels" / f"{family}.py").read_text())
        for node in ast.walk(cases):
            if isinstance(node, ast.ImportFrom) and node.module == "kernels.gpu":
                launched |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kernels.gpu."):
                launched.add(str(node.module).rpartition(".")[2])
    assert with_kernels <= launched and set(FAMILIES) <= with_kernels


def test_faults_are_found() -> None:
    """Two planted kernels: one whose pointers are not known to be aligned, one whose tile fits no registers."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(Path(__file__).with_name("planted_faults.py"))]
    done = subprocess.run(
        command, cwd=ROOT, env=environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    unaligned, spilling = json.loads(done.stdout)
    assert [fault for fault in unaligned if "LDG.E.U16" in fault]
    assert [fault for fault in spilling if "spills" in fault]
    assert [fault for fault in spilling if "no UNKNOWN on sm_80" in fault]
