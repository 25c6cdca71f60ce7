"""lm-eval's `local-completions` on a task of our own, tokens and all over HTTP."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.clients.environment import client_program, needs_client
from tests.end_to_end.cluster import Cluster

QUESTIONS = [
    ("The capital of France is", [" Paris", " banana", " seven"], 0),
    ("Two plus two is", [" purple", " four", " Norway"], 1),
    ("The opposite of hot is", [" chair", " Tuesday", " cold"], 2),
    ("The sun rises in the", [" east", " soup", " pocket"], 0),
]
TASK = """
task: facts
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""


@pytest.mark.clients
@needs_client("lm-eval")
def test_a_multiple_choice_task_is_scored(demo: Cluster, tmp_path: Path) -> None:
    data = tmp_path / "facts.jsonl"
    rows = [{"question": one, "choices": choices, "answer": answer} for one, choices, answer in QUESTIONS]
    data.write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "facts.yaml").write_text(TASK.format(data=data))
    arguments = f"base_url={demo.url}/v1/completions,tokenizer_backend=remote,tokenized_requests=True,max_length=2048"
    subprocess.run(
        [
            *(
                client_program("lm-eval", "lm_eval"),
                "--model",
                "local-completions",
                "--model_args",
                arguments,
                "--batch_size",
                "4",
            ),
            *("--include_path", str(tmp_path), "--tasks", "facts", "--output_path", str(tmp_path / "out")),
        ],
        env=os.environ | {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")},
        check=True,
        timeout=110,
    )
    (found,) = (tmp_path / "out").rglob("results*.json")
    assert json.loads(found.read_text())["results"]["facts"]["acc,none"] == 1.0
