"""Building the C++ kernels: once, safely from two processes, and an orderly None where it cannot be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels import cpu_build
from kernels.ops import select_ops

ROOT = Path(__file__).parents[2]
needs_compiler = pytest.mark.skipif(cpu_build._compiler() is None, reason="no C++ compiler here")


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has not loaded yet."""
    monkeypatch.setattr(cpu_build, "_loaded", [])


@needs_compiler
def test_two_processes_build_one_library_that_also_serves_without_a_compiler(
    tmp_path: Path, fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import sys; from pathlib import Path; from kernels import cpu_build; "
    code += "sys.exit(0 if cpu_build.load(Path(sys.argv[1])) else 1)"
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}) for _ in range(2)]
    assert [process.wait(timeout=100) for process in processes] == [0, 0]
    names = sorted(path.suffix for path in (tmp_path / "kernels").iterdir())
    assert names == ["", ".so"]  # the lock and one library, nothing half-built beside it
    monkeypatch.setattr(cpu_build, "_compiler", lambda: None)
    lines: list[str] = []
    assert cpu_build.load(tmp_path, lines.append) is not None
    assert lines == []


def test_without_a_compiler_the_plain_table_serves(
    tmp_path: Path, fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_build, "_compiler", lambda: None)
    lines: list[str] = []
    assert cpu_build.load(tmp_path, lines.append) is None
    (line,) = lines
    assert "g++" in line
    ops = select_ops(torch.device("cpu"), torch.bfloat16)
    out = ops.linear(torch.ones(2, 3).bfloat16(), ops.pack_linear(torch.ones(4, 3).bfloat16()), None)
    assert out.tolist() == [[3.0] * 4] * 2
    assert len(lines) == 1  # said once


def test_a_compiler_that_fails_is_reported_and_leaves_nothing(
    tmp_path: Path, fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\necho 'ld: no such thing' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(cpu_build, "_compiler", lambda: str(broken))
    monkeypatch.setattr(cpu_build, "_compiler_key", lambda compiler: "0")
    lines: list[str] = []
    assert cpu_build.load(tmp_path, lines.append) is None
    assert "no such thing" in lines[-1]
    assert [path.name for path in (tmp_path / "kernels").iterdir()] == ["lock"]


def test_a_directory_that_cannot_be_written_is_no_error(tmp_path: Path, fresh: None) -> None:
    (tmp_path / "file").write_text("")
    lines: list[str] = []
    library = cpu_build.load(tmp_path / "file", lines.append)
    assert library is None and "CPU kernels are off" in lines[-1]
