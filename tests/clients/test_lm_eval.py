"""lm-eval on tasks of our own: choices by their logprobs, tokens and all over HTTP; answers of a chat up to a stop."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

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
SAID = [
    ("What is the capital of France?", "The capital of France is Paris"),
    ("What is the capital of Germany?", "The capital of Germany is Berlin"),
]
CHAT_TASK = """
task: answers
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
generation_kwargs: {{until: ["."], max_gen_toks: 20, do_sample: false, temperature: 0}}
doc_to_text: question
doc_to_target: answer
metric_list: [{{metric: exact_match}}]
"""


@pytest.mark.clients
@needs_client("lm-eval")
def test_a_multiple_choice_task_is_scored(demo: Cluster, tmp_path: Path) -> None:
    rows = [{"question": one, "choices": choices, "answer": answer} for one, choices, answer in QUESTIONS]
    options = ["tokenizer_backend=remote", "tokenized_requests=True", "max_length=2048"]
    results = evaluated(demo, tmp_path, rows, "facts", TASK, "local-completions", "completions", options, "4")
    assert results["acc,none"] == 1.0


@pytest.mark.clients
@needs_client("lm-eval")
def test_answers_of_a_chat_go_on_to_the_stop(demo: Cluster, tmp_path: Path) -> None:
    rows = [{"question": question, "answer": answer} for question, answer in SAID]
    model = "local-chat-completions"
    results = evaluated(
        demo, tmp_path, rows, "answers", CHAT_TASK, model, "chat/completions", [], "1", "--apply_chat_template"
    )
    assert results["exact_match,none"] == 1.0


def evaluated(
    demo: Cluster,
    folder: Path,
    rows: list[dict[str, Any]],
    name: str,
    task: str,
    model: str,
    route: str,
    options: list[str],
    batch_size: str,
    *more: str,
) -> dict[str, float]:
    """What lm-eval says of the task by that route."""
    data = folder / f"{name}.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    (folder / f"{name}.yaml").write_text(task.format(data=data))
    subprocess.run(
        [
            *(client_program("lm-eval", "lm_eval"), "--model", model, "--batch_size", batch_size),
            *("--model_args", ",".join([f"base_url={demo.url}/v1/{route}", *options])),
            *("--include_path", str(folder), "--tasks", name, "--output_path", str(folder / "out"), *more),
        ],
        env=os.environ | {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")},
        check=True,
        timeout=110,
    )
    (found,) = (folder / "out").rglob("results*.json")
    results: dict[str, float] = json.loads(found.read_text())["results"][name]
    return results
