"""The command line as a user meets it: help, sentences instead of tracebacks, exit codes."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.__main__ import main
from cli.child import ROOT

Answer = tuple[int, str, str]  # exit code, stdout, stderr
RunPdq = Callable[..., Answer]


@pytest.fixture
def pdq(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> RunPdq:
    """`pdq ARGUMENTS`, in this process: loading Python anew for each would take most of the time."""
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments: str) -> Answer:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        out, err = capsys.readouterr()
        code = ended.value.code
        assert code is None or isinstance(code, int)
        return code or 0, out, err

    return run


def test_help_names_every_command(pdq: RunPdq) -> None:
    code, out, _ = pdq("--help")
    assert code == 0
    for command in (
        "serve",
        "api",
        "prefill",
        "decode",
        "status",
        "health",
        "doctor",
        "model",
        "key",
        "config",
        "bench",
        "chat",
    ):
        assert f"│ {command} " in out
    assert pdq("--version")[1].startswith("pdq")


@pytest.mark.parametrize(
    "command, words",
    [
        (("serve",), ("--model", "--host", "--port", "--prefill", "--decode", "--redis-url", "Hugging Face directory")),
        (("health",), ("--role", "containers")),
        (("status",), ("--watch",)),
        (("doctor",), ("--gpu", "--json", "Exit code 1")),
        (("model", "fetch"), ("GGUF", "PDQ_MODEL__PATH")),
        (("bench",), ("--concurrency",)),
    ],
    ids=lambda value: value[-1],
)
def test_help_says_what_can_be_given(pdq: RunPdq, command: tuple[str, ...], words: tuple[str, ...]) -> None:
    code, out, _ = pdq(*command, "--help")
    assert code == 0
    for word in words:
        assert word in out


@pytest.mark.parametrize("command", ["serve", "api", "prefill", "decode", "status", "config check"])
def test_a_bad_setting_is_one_sentence_and_exit_code_2(
    pdq: RunPdq, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("PDQ_KV__BLOCK_SIZE", "17")
    code, out, err = pdq(*command.split())
    assert (code, out) == (2, "")
    assert err.startswith("pdq: PDQ_KV__BLOCK_SIZE = ") and err.count("\n") == 1


def test_a_misspelt_setting_stops_the_real_process_without_a_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cli", "serve"],
        cwd=ROOT,
        env=os.environ | {"PDQ_PROT": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("pdq: PDQ_PROT is no setting of pdq") and done.stderr.count("\n") == 1


def test_a_port_in_use_stops_serve_before_anything_starts(pdq: RunPdq) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, out, err = pdq("serve", "--port", str(port))
    assert (code, out) == (2, "")
    assert f"port {port} on 127.0.0.1 is in use" in err and "--port" in err


def test_an_address_that_is_not_ours_stops_serve(pdq: RunPdq) -> None:
    code, out, err = pdq("serve", "--host", "203.0.113.7", "--port", "0")
    assert (code, out) == (2, "")
    assert "cannot listen on 203.0.113.7" in err


@pytest.mark.parametrize("command", ["serve --port 0 --model", "model fetch"])
def test_a_model_that_is_not_there_is_exit_code_4(pdq: RunPdq, command: str) -> None:
    code, _, err = pdq(*command.split(), "/does/not/exist")
    assert code == 4
    assert "pdq: /does/not/exist does not exist" in err
    assert "Traceback" not in err


def test_the_models_that_are_kept_are_listed(pdq: RunPdq, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PDQ_MODEL__CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "300")
    assert "`pdq model fetch` fetches a model" in pdq("model", "list")[1]
    for name in ("models/a-bf16-v2", "hub/models--org--b/snapshots/123", "models/unfinished"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "model.safetensors").write_bytes(b"x" * 20_000_000)
        if "unfinished" not in name:
            (tmp_path / name / "config.json").write_text("{}")
    code, out, _ = pdq("model", "list")
    assert code == 0
    assert f"{tmp_path}/models/a-bf16-v2 │ 0.02" in " ".join(out.split())
    assert f"{tmp_path}/hub/models--org--b/snapshots/123" in out and "unfinished" not in out


def test_a_shell_completes_commands(pdq: RunPdq, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in (("_PDQ_COMPLETE", "complete_bash"), ("COMP_WORDS", "pdq sta"), ("COMP_CWORD", "1")):
        monkeypatch.setenv(variable, value)
    code, out, _ = pdq()
    assert (code, out.split()) == (0, ["status"])


def test_a_redis_that_is_not_there_is_exit_code_5(pdq: RunPdq, tmp_path: Path) -> None:
    code, _, err = pdq("status", "--redis-url", f"unix://{tmp_path}/none.sock")
    assert code == 5
    assert err.startswith("pdq: Redis at unix:") and f"{tmp_path}/none.sock" in err and err.count("\n") == 1


def test_config_show_prints_what_is_set_and_no_password(pdq: RunPdq, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PDQ_KV__NUM_BLOCKS", "321")
    monkeypatch.setenv("PDQ_REDIS__URL", "redis://:hunter2@somewhere/0")
    code, out, _ = pdq("config", "show")
    assert code == 0
    assert "PDQ_KV__NUM_BLOCKS=321\n" in out
    assert "PDQ_REDIS__URL=redis://:***@somewhere/0\n" in out
    assert "hunter2" not in out
    assert pdq("config", "check")[0] == 0


def test_status_and_health_of_a_redis_without_workers(
    pdq: RunPdq, redis_url: str, key_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PDQ_REDIS__KEY_PREFIX", key_prefix)
    code, out, _ = pdq("status", "--redis-url", redis_url)
    assert code == 0 and "none is alive" in out
    code, _, err = pdq("health", "--role", "cluster", "--redis-url", redis_url)
    assert (code, err) == (1, "pdq: prefill: 0/0 ready; decode: 0/0 ready\n")
    code, _, err = pdq("health", "--role", "worker", "--redis-url", redis_url)
    assert code == 1 and "no live worker of host" in err


@pytest.mark.parametrize("command", ["status b1", "status b1 --wait", "cancel b1", "fetch b1"])
def test_a_batch_of_a_server_that_is_away_is_a_sentence(
    pdq: RunPdq, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr("cli.batch.AWAY_S", 0.0)
    code, out, err = pdq("batch", *command.split(), "--url", "http://127.0.0.1:9")
    assert (code, out) == (1, "")
    assert err.startswith("pdq: http://127.0.0.1:9 cannot be reached") and err.count("\n") == 1
    code, _, err = pdq("batch", *command.split(), "--url", "somewhere")
    assert code == 2 and "must look like http://HOST:PORT" in err
