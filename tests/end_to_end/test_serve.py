"""`pdq serve` as a user runs it: one command to the first token, and nothing left behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from tests.end_to_end.cluster import ROOT, free_port, wait_until


def segments_of(processes: list[psutil.Process]) -> set[Path]:
    """The shared memory that these processes have mapped."""
    maps = [Path(mapped.path) for process in processes for mapped in process.memory_maps()]
    # The ledger of cores is the host's: whoever computes here has it in common, and it stays.
    return {path for path in maps if path.parent == Path("/dev/shm") and not path.name.startswith("pdq-cores.")}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_answers_and_leaves_nothing(tmp_path: Path, demo_dir: Path, number: signal.Signals) -> None:
    port, log = free_port(), tmp_path / "serve.log"
    command = [sys.executable, "-m", "cli", "serve", "--model", str(demo_dir), "--port", str(port)]
    env = os.environ | {"PDQ_KV__POOL_BYTES": str(128 << 20)}
    with log.open("wb") as out:
        serve = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out, env=env, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: "curl" in log.read_text() or serve.poll() is not None, 60, "the banner")
        assert serve.poll() is None, log.read_text()
        body = {"inputs": "What is AI?", "parameters": {"max_new_tokens": 5}}
        assert httpx.post(url + "/generate", json=body, timeout=30).json()["count_output_tokens"] == 5
        assert url in log.read_text()
        assert "KV" in log.read_text()
        children = psutil.Process(serve.pid).children(recursive=True)
        assert len(children) >= 4  # redis, api, prefill, decode
        segments = segments_of(children)
        assert segments
        serve.send_signal(number)
        assert serve.wait(10) == 0
        gone, alive = psutil.wait_procs(children, timeout=1)
        assert not alive
        assert not [path for path in segments if path.exists()]
    finally:
        if serve.poll() is None:
            os.killpg(serve.pid, signal.SIGKILL)


def test_a_crashed_worker_is_restarted(tmp_path: Path, tiny_dir: Path) -> None:
    port, log = free_port(), tmp_path / "serve.log"
    command = [sys.executable, "-m", "cli", "serve", "--model", str(tiny_dir), "--port", str(port)]
    env = os.environ | {"PDQ_KV__POOL_BYTES": str(128 << 20)}
    with log.open("wb") as out:
        serve = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out, env=env, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: "curl" in log.read_text() or serve.poll() is not None, 60, "the banner")
        (decode,) = [
            child for child in psutil.Process(serve.pid).children(recursive=True) if "decode" in child.cmdline()
        ]
        decode.kill()
        body = {"inputs": "What is AI?", "parameters": {"max_new_tokens": 5}}
        # Accepted while there is no decode worker, answered when the new one is there.
        assert httpx.post(url + "/generate", json=body, timeout=60).json()["count_output_tokens"] == 5
    finally:
        serve.terminate()
        assert serve.wait(10) == 0
