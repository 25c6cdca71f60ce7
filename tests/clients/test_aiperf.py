"""aiperf measures the demo model over OpenAI's chats and completions, with the model's own tokenizer.

It takes tokenizers from Hugging Face's cache; a directory that is none fails in aiperf 0.13.0 where the hub is offline.
"""

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
@needs_client("aiperf")
@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_a_small_load_is_measured(endpoint: str, demo: Cluster, demo_dir: Path, tmp_path: Path) -> None:
    (model,) = httpx.get(demo.url + "/v1/models").json()["data"]
    hub = tmp_path / "hf" / "hub" / "models--pdq--demo"
    (hub / "refs").mkdir(parents=True)
    (hub / "refs" / "main").write_text("0" * 40)
    (hub / "snapshots").mkdir()
    (hub / "snapshots" / ("0" * 40)).symlink_to(demo_dir)
    subprocess.run(
        [
            *(client_program("aiperf", "aiperf"), "profile", "--model", model["id"], "--tokenizer", "pdq/demo"),
            *("--url", demo.url, "--endpoint-type", endpoint, "--streaming", "--concurrency", "2"),
            *("--request-count", str(NUM_REQUESTS), "--num-dataset-entries", str(NUM_REQUESTS)),
            *(
                "--synthetic-input-tokens-mean",
                "32",
                "--output-tokens-mean",
                str(NUM_OUTPUT_TOKENS),
                "--extra-inputs",
                "ignore_eos:true",
            ),
            *("--artifact-dir", str(tmp_path / "out"), "--ui", "none"),
        ],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")},
        cwd=tmp_path,
        check=True,
        timeout=110,
    )
    (found,) = (tmp_path / "out").rglob("profile_export_aiperf.json")
    measured = json.loads(found.read_text())
    assert measured["request_count"]["avg"] == NUM_REQUESTS
    assert measured["output_sequence_length"]["avg"] == NUM_OUTPUT_TOKENS
    assert measured["time_to_first_token"]["avg"] > 0
    assert not measured.get("error_summary")
