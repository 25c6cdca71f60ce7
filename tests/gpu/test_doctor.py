"""Everything that `pdq doctor --gpu` checks, on a machine with a CUDA device: `make test-gpu`."""

import pytest

from bench.doctor.check import Verdict
from bench.doctor.child import run_in_child
from bench.doctor.gpu_checks import GPU_CHECKS, TIME_LIMIT_S

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(TIME_LIMIT_S + 60)]


@pytest.mark.parametrize("title", GPU_CHECKS)
def test_nothing_fails(title: str) -> None:
    findings = list(run_in_child(title, "cuda:0", TIME_LIMIT_S))
    assert findings
    assert [finding for finding in findings if finding.verdict is Verdict.FAIL] == []
