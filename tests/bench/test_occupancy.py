"""Resident blocks by our arithmetic and by NVIDIA's own calculator."""

import ctypes
import subprocess
from pathlib import Path

import pytest
import triton
from hypothesis import given
from hypothesis import strategies as st

from bench.kernels.case import MAX_SHARED_BYTES
from bench.kernels.occupancy import MULTIPROCESSORS, num_resident_blocks, occupancy


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = tmp_path_factory.mktemp("occupancy") / "oracle.so"
    include = Path(triton.__file__).parent / "backends" / "nvidia" / "include"
    source = Path(__file__).with_name("occupancy_oracle.c")
    subprocess.run(["gcc", "-shared", "-fPIC", f"-I{include}", "-o", library, source], check=True, timeout=60)
    return ctypes.CDLL(str(library))


@given(
    capability=st.sampled_from(sorted(MULTIPROCESSORS)),
    registers=st.integers(16, 255),
    shared_share=st.floats(0, 1),
    num_warps=st.integers(1, 32),
)
def test_nvidias_calculator_agrees(
    oracle: ctypes.CDLL, capability: int, registers: int, shared_share: float, num_warps: int
) -> None:
    limits = MULTIPROCESSORS[capability]
    shared_bytes = int(shared_share * (limits.shared_bytes - 1024))
    wanted = oracle.resident_blocks(
        capability, limits.max_warps * 32, limits.shared_bytes, registers, shared_bytes, num_warps
    )
    assert wanted >= 0
    assert num_resident_blocks(capability, registers, shared_bytes, num_warps) == wanted


@pytest.mark.parametrize(
    ("capability", "registers", "shared_bytes", "num_warps", "blocks", "share"),
    [
        (80, 32, 0, 8, 8, 1.0),  # warps
        (80, 64, 0, 8, 4, 0.5),  # registers: 2048 a warp, 32 warps
        (90, 32, 100 << 10, 4, 2, 0.125),  # shared memory: 101 KiB of 228 a block
        (120, 32, 0, 1, 24, 0.5),  # blocks
        (100, 255, 0, 16, 0, 0.0),  # 8192 a warp: 16 of them are more than there are
    ],
)
def test_what_limits(
    capability: int, registers: int, shared_bytes: int, num_warps: int, blocks: int, share: float
) -> None:
    assert num_resident_blocks(capability, registers, shared_bytes, num_warps) == blocks
    assert occupancy(capability, registers, shared_bytes, num_warps) == share


def test_a_block_may_have_what_is_left_beside_the_drivers_share() -> None:
    for capability, max_shared_bytes in MAX_SHARED_BYTES.items():
        assert num_resident_blocks(capability, 32, max_shared_bytes, 4) == 1
        assert num_resident_blocks(capability, 32, max_shared_bytes + 1, 4) == 0
