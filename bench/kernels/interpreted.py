"""The small cases under Triton's interpreter beside their twins. The process must have TRITON_INTERPRET=1."""

from collections.abc import Iterator

import msgspec
import torch

from bench.kernels import interpreter
from bench.kernels.case import Inputs, max_error
from bench.kernels.families import small_cases_of


class InterpretedCase(msgspec.Struct, frozen=True):
    """One small case; its error as `max_error` defines it."""

    family: str
    case: str
    error: float
    tolerance: float


def interpret(family: str) -> Iterator[InterpretedCase]:
    """Every small case of the family. Patches the interpreter of this process (interpreter.py)."""
    interpreter.install()
    cpu = torch.device("cpu")
    for case in small_cases_of(family):
        ours, wanted = case.launch(*case.make(Inputs(cpu))), case.twin(*case.make(Inputs(cpu)))
        yield InterpretedCase(case.family, case.name, max_error(ours, wanted), case.tolerance)
