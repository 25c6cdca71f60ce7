"""Kernels of kernels/gpu/ run under Triton's interpreter here, made strict."""

import pytest

from bench.kernels import interpreter


@pytest.fixture(autouse=True)
def strict_interpreter() -> None:
    """Right bfloat16 and checked memory in every test of this folder."""
    interpreter.install()
