"""The GPU checks on a CPU (interpreted kernels, KV through shared memory, a tiny model), and planted faults."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from bench.doctor import achieved, agreement, graphs, kv_pulls, parity
from bench.doctor.check import Finding, Verdict
from bench.doctor.gpu_checks import GPU_CHECKS
from bench.doctor.gpus import judge
from bench.kernels import interpreter
from bench.kernels.families import FAMILIES, small_cases_of
from bench.kernels.gpu_types import GPU_TYPES
from cli.child import ROOT
from engine.weights import load_model
from kernels.gpu.table import gpu_ops
from kv_transfer.receiver import KVReceiver
from messages.kv_transfer import KVHandle, PoolExport
from tests.engine.test_decode_graphs import Recorder
from tests.tiny_models import greedy, prompts, tiny_model, tiny_runner

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def strict_interpreter() -> None:
    interpreter.install()


def verdicts(findings: Iterator[Finding]) -> list[Verdict]:
    return [finding.verdict for finding in findings]


def test_a_kernel_that_agrees_and_one_that_does_not() -> None:
    (case,) = small_cases_of("silu_mul")

    def off_by_one(gate_up: Tensor) -> Any:
        return case.twin(gate_up) + 1  # type: ignore[operator]

    def refusing(gate_up: Tensor) -> Any:
        raise RuntimeError("out of resource: shared memory")

    cases = [case, replace(case, launch=off_by_one), replace(case, launch=refusing), replace(case, capabilities=(999,))]
    good, wrong, raised, skipped = agreement.check(CPU, "silu_mul", cases)
    assert good.verdict is Verdict.OK and good.figures == {"max_error": 0.0, "tolerance": case.tolerance}
    assert wrong.verdict is Verdict.FAIL and wrong.figures["max_error"] > case.tolerance
    assert (raised.verdict, raised.said) == (Verdict.FAIL, "RuntimeError: out of resource: shared memory")
    assert (skipped.verdict, skipped.said) == (Verdict.WARN, "not run: it is for sm_999 and later")


def test_a_time_beside_its_bound() -> None:
    cases = [replace(case, traffic_bytes=1_000_000, flops=2_000_000) for case in small_cases_of("silu_mul")]
    num_launches = []

    def timer(launch: Callable[[], object]) -> float:
        num_launches.append(launch())
        return 4.0

    (found,) = achieved.check(CPU, timer, cases)
    assert len(num_launches) == 1
    assert found.said == "4.0 us: 250 GB/s, 0.50 TFLOP/s", "a CPU has no data sheet here"
    known = achieved.rate("case", cases[0], replace(GPU_TYPES["a100"], memory_gb_s=500), 4.0)
    assert known.said == "4.0 us: 250 GB/s, 0.50 TFLOP/s; 50% of the bound, 2.0 us by memory"
    assert known.figures["share_of_bound"] == 0.5


def test_kv_gets_from_one_process_to_another() -> None:
    """The check itself, with shared memory in the place of CUDA IPC: `start_driver` chooses by device."""
    own, pair, half = kv_pulls.check(CPU, [CPU], num_blocks=32, block_bytes=2 * 2048)
    assert (own.subject, own.verdict, own.said) == ("self-test on cpu", Verdict.OK, "shared_memory on cpu")
    assert (pair.subject, pair.verdict) == ("cpu -> cpu", Verdict.OK)
    assert (half.subject, half.verdict) == ("cpu -> cpu, half", Verdict.OK)
    assert pair.figures["gb_s"] > 0 and half.figures["gb_s"] > 0


def test_kv_gets_through_a_process_group() -> None:
    pair, half = kv_pulls.check(CPU, [CPU], num_blocks=32, block_bytes=2 * 2048, network="nccl")
    assert (pair.subject, pair.verdict) == ("cpu -> cpu", Verdict.OK), pair
    assert (half.subject, half.verdict) == ("cpu -> cpu, half", Verdict.OK), half
    assert pair.figures["gb_s"] > 0


def test_one_gpu_has_no_peer_to_pair_with() -> None:
    (alone,) = kv_pulls.check(CPU, [torch.device("cuda", 0)], num_blocks=4, block_bytes=64, network="nccl")
    assert (alone.verdict, alone.said) == (Verdict.WARN, "there is no other GPU to pair with")


def test_replayed_steps_beside_launched_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.weights.select_ops", lambda device, dtype: gpu_ops())
    model = load_model(tiny_model("llama").path, torch.float32, CPU)
    findings = list(graphs.compare(model, Recorder(), (1, 2), num_tokens=20, num_steps=1))
    assert [finding.verdict for finding in findings] == [Verdict.OK] * 2
    assert all(0 <= finding.figures["max_error"] < 1e-4 and finding.figures["replayed_ms"] > 0 for finding in findings)
    logits = model.logits

    def wrong_into_out(hidden: Tensor, out: Tensor | None = None) -> Tensor:
        return logits(hidden) if out is None else out.copy_(logits(hidden) + 1)

    model.logits = wrong_into_out  # type: ignore[method-assign]
    (found,) = graphs.compare(model, Recorder(), (1,), num_tokens=20, num_steps=1)
    assert found.verdict is Verdict.FAIL


def test_kv_that_arrives_wrong_or_too_late_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A receiver that flips a bit, and takes a withdrawn offer for good."""
    num_pulls = []

    def pull(self: object, handle: KVHandle, into: Tensor, block_ids: list[int], export: PoolExport) -> None:
        num_pulls.append(1)
        into[block_ids[0], 3] ^= 1

    monkeypatch.setattr(KVReceiver, "pull", pull)
    _, *both = kv_pulls.check(CPU, [CPU], num_blocks=4, block_bytes=2048)
    wrong, late = "other bytes arrived than were offered", "a withdrawn offer could still be pulled"
    assert [(one.subject, one.verdict, one.said) for one in both] == [
        (subject, Verdict.FAIL, said) for said in (wrong, late) for subject in ("cpu -> cpu", "cpu -> cpu, half")
    ]
    assert len(num_pulls) == 2 * (kv_pulls.NUM_PULLS + 2)


def test_an_owner_that_does_not_come_up_is_a_failure() -> None:
    nowhere = torch.device("cuda", 63)
    failures = list(kv_pulls.check(CPU, [nowhere], num_blocks=4, block_bytes=64))
    assert [failure.verdict for failure in failures] == [Verdict.FAIL] * 2
    assert [failure.subject for failure in failures] == ["self-test on cuda:63", "from cuda:63"]


def test_a_model_says_the_same_on_the_same_device() -> None:
    prompt_list = prompts(count=3, longest=18)
    findings = list(parity.compare(tiny_model("llama").path, prompt_list, CPU, torch.float32, num_tokens=4))
    assert [(finding.verdict, finding.figures["equal_tokens"]) for finding in findings] == [(Verdict.OK, 4.0)] * 3


def test_what_is_judged_are_the_engines_greedy_tokens() -> None:
    path, prompt_list = tiny_model("llama").path, prompts(count=2, longest=18)
    runner = tiny_runner(path)
    assert parity.generate(runner.model, prompt_list, 5) == greedy(runner, prompt_list, 5)


def test_a_model_that_says_something_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "generate", lambda model, prompts, num_tokens: [[7] * num_tokens for _ in prompts])
    found = parity.compare(tiny_model("llama").path, prompts(count=2, longest=18), CPU, torch.bfloat16, num_tokens=4)
    assert verdicts(found) == [Verdict.FAIL] * 2


def test_a_near_tie_may_fall_either_way() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.75], [5.0, 0.0, 4.0]])
    assert parity.judge("p", logits, [2, 0], 0.25).figures == {"tokens": 2, "equal_tokens": 1, "max_gap": 0.25}
    assert parity.judge("p", logits, [2, 0], 0.25).verdict is Verdict.OK
    assert parity.judge("p", logits, [2, 0], 0.24).verdict is Verdict.FAIL
    assert parity.judge("p", logits, [1, 2], 0.25).verdict is Verdict.FAIL


@pytest.mark.parametrize(
    ("name", "capability", "free_bytes", "verdict", "remedy"),
    [
        ("NVIDIA H200", 90, 99, Verdict.OK, ""),
        ("NVIDIA H100 PCIe", 90, 99, Verdict.OK, "data sheet is not in"),
        ("NVIDIA H200", 90, 50, Verdict.WARN, "others use this GPU"),
        ("Tesla V100", 70, 99, Verdict.FAIL, "need sm_80"),
    ],
)
def test_what_is_thought_of_a_gpu(name: str, capability: int, free_bytes: int, verdict: Verdict, remedy: str) -> None:
    found = judge("cuda:0", name, capability, free_bytes, 100)
    assert found.verdict is verdict and remedy in found.remedy and name in found.said


def test_every_family_is_checked_and_a_check_without_a_device_is_a_finding() -> None:
    assert {f"kernel {family}" for family in FAMILIES} < GPU_CHECKS.keys()
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench.doctor", "KV by CUDA IPC", "--device", "cuda:0"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment | {"CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        assert msgspec.convert(json.loads(line), Finding).verdict is Verdict.FAIL
