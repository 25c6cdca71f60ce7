"""What is said while waiting and when it is ready."""

import io
import json
from pathlib import Path

from rich.console import Console

from cli.banner import Facts, banner, model_dtype, waiting_for
from cli.screen import Screen
from messages.worker_status import Role, WorkerState, WorkerStatus
from settings.model import ModelSettings


def worker(role: Role, capacity: int = 0, state: WorkerState = WorkerState.READY, detail: str = "") -> WorkerStatus:
    return WorkerStatus(f"{role}-1", role, state, "here", 7, 0, capacity_tokens=capacity, detail=detail)


def test_the_banner_has_what_one_needs() -> None:
    workers = [worker(Role.PREFILL, 9999), worker(Role.DECODE, 40960), worker(Role.DECODE, 40960)]
    text = banner(Facts("http://127.0.0.1:8080", "m", Path("/m"), "bfloat16", workers, "unix:///r.sock", 12.3))
    for part in (
        "http://127.0.0.1:8080",
        "m (bfloat16)",
        "1 prefill, 2 decode",
        "81,920 tokens",
        "40 requests",
        "Ctrl-C",
    ):
        assert part in text
    assert "--redis-url unix:///r.sock" in text
    (curl,) = [line for line in text.splitlines() if "curl" in line]
    assert "http://127.0.0.1:8080/generate_stream" in curl
    assert json.loads(curl.partition("-d '")[2].rstrip("'"))["inputs"]
    assert "Authorization" not in curl
    text = banner(Facts("http://127.0.0.1:8080", "m", Path("/m"), "auto", workers, "unix:///r.sock", 1, True))
    assert '-H "Authorization: Bearer $PDQ_API_KEY" ' in text


def test_waiting_says_for_what() -> None:
    wanted = {Role.PREFILL: 1, Role.DECODE: 2}
    loading = worker(Role.PREFILL, state=WorkerState.LOADING, detail="loading weights 43 %")
    text = waiting_for([loading, worker(Role.DECODE)], wanted, "/health answers 503")
    assert text == "prefill 0/1 ready (loading weights 43 %), decode 1/2 ready, api: /health answers 503"
    assert waiting_for([], wanted, "no answer from http://x/health: refused").endswith("api: starting")


def test_dtype_is_the_setting_else_the_checkpoints(tmp_path: Path) -> None:
    assert model_dtype(ModelSettings(dtype="float32"), tmp_path) == "float32"
    assert model_dtype(ModelSettings(), tmp_path) == "auto"
    (tmp_path / "config.json").write_text('{"torch_dtype": "bfloat16"}')
    assert model_dtype(ModelSettings(), tmp_path) == "bfloat16"


def test_plain_progress_is_a_line_every_five_seconds() -> None:
    now, out = 0.0, io.StringIO()
    screen = Screen(Console(file=out, soft_wrap=True), clock=lambda: now)
    for percent in range(100):
        now = percent / 10  # ten seconds in all
        screen.progress(f"loading weights {percent} %")
    screen.say("[ready]")  # no markup
    assert out.getvalue().splitlines() == ["loading weights 0 %", "loading weights 50 %", "[ready]"]
