"""Whether every kernel computes on the device what its plain torch twin computes there."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch

from bench.doctor.check import Finding, Verdict, attempt
from bench.kernels.case import Inputs, KernelCase, max_error
from bench.kernels.families import cases_of
from kernels.gpu.target import capability


def check(device: torch.device, family: str, cases: Sequence[KernelCase] | None = None) -> Iterator[Finding]:
    """A line per case of the family: its largest error beside the tolerance."""
    for case in cases_of(family) if cases is None else cases:
        yield from attempt(case.name, partial(_compare, case, device))


def _compare(case: KernelCase, device: torch.device) -> Iterator[Finding]:
    if not case.runs_on(capability(device)):
        yield Finding(case.name, Verdict.WARN, f"not run: it is for sm_{min(case.capabilities)} and later")
        return
    # Made twice, as launches write into their inputs.
    ours = case.launch(*case.make(Inputs(device)))
    wanted = case.twin(*case.make(Inputs(device)))
    error = max_error(ours, wanted)
    verdict = Verdict.OK if error <= case.tolerance else Verdict.FAIL
    said = f"largest error {error:.2g}, at most {case.tolerance:g} wanted"
    yield Finding(case.name, verdict, said, figures={"max_error": error, "tolerance": case.tolerance})
