"""guidellm measures the demo model over OpenAI's chats and completions, with the model's own tokenizer."""

import json
import os
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.clients.environment import client_program, needs_client
from tests.end_to_end.cluster import Cluster

NUM_REQUESTS = 4
NUM_OUTPUT_TOKENS = 8


@pytest.mark.clients
@needs_client("guidellm")
@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/completions"])
def test_a_small_load_is_measured(route: str, demo: Cluster, demo_dir: Path, tmp_path: Path) -> None:
    (model,) = httpx.get(demo.url + "/v1/models").json()["data"]
    scenario = {
        "backend": {"kind": "openai_http", "target": demo.url, "model": model["id"], "request_format": route},
        "profile": {"kind": "concurrent", "streams": [2]},
        "constraints": [{"kind": "max_requests", "count": NUM_REQUESTS}],
        "data": [{"kind": "synthetic_text", "prompt_tokens": 32, "output_tokens": NUM_OUTPUT_TOKENS}],
        "tokenizer": {"kind": "huggingface_auto", "model": str(demo_dir)},
        "outputs": [{"kind": "json", "path": str(tmp_path / "out.json")}],
    }
    (tmp_path / "scenario.json").write_text(json.dumps({"spec": scenario}))
    subprocess.run(
        [client_program("guidellm", "guidellm"), "run", "--config", "scenario.json", "--disable-console-interactive"],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")},
        cwd=tmp_path,
        check=True,
        timeout=110,
    )
    (measured,) = json.loads((tmp_path / "out.json").read_text())["benchmarks"]
    metrics = measured["metrics"]
    assert metrics["request_totals"]["successful"] == NUM_REQUESTS and not metrics["request_totals"]["errored"]
    assert metrics["output_token_count"]["successful"]["mean"] == NUM_OUTPUT_TOKENS
    assert metrics["time_to_first_token_ms"]["successful"]["mean"] > 0
