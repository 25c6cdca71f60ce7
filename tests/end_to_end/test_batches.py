"""Batches by OpenAI's own client on a real cluster: every line once, whatever dies; ends, cancels and webhooks."""

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.end_to_end.cluster import ROOT, Cluster, running_cluster, wait_until

SECRET = "whsec_" + "c2VjcmV0IG9mIHRoZSB0ZXN0cyE="
OPEN = ("validating", "in_progress", "finalizing", "cancelling")


class Receiver(HTTPServer):
    """Takes webhooks; answers 500 to the first one."""

    def __init__(self) -> None:
        self.taken: list[tuple[dict[str, str], str]] = []
        taken = self.taken

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"])).decode()
                taken.append(({name.lower(): value for name, value in self.headers.items()}, body))
                self.send_response(500 if len(taken) == 1 else 204)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, redis_url: str, tiny_dir: Path, receiver: Receiver
) -> Iterator[Cluster]:
    """With a batch worker and its clock."""
    folder = tmp_path_factory.mktemp("batches")
    (folder / "secret").write_text(SECRET)
    env = {
        "PDQ_BATCH__SHARD_LINES": "8",
        "PDQ_BATCH__LINES_AT_ONCE": "4",
        "PDQ_BATCH__SHARDS_AT_ONCE": "2",
        "PDQ_BATCH__LEASE_S": "1.5",
        "PDQ_BATCH__TEND_S": "0.2",
        "PDQ_BATCH__WEBHOOK_ALLOW": f"http://127.0.0.1:{receiver.server_port}/hooks/",
        "PDQ_BATCH__WEBHOOK_SECRET_FILE": str(folder / "secret"),
    }
    with running_cluster(folder, redis_url, tiny_dir, env, wait=False) as running:
        running.start("batch", PDQ_BATCH__API_URL=running.url)
        running.wait_healthy()
        yield running


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=cluster.url + "/v1", api_key="none", timeout=30, max_retries=0) as made:
        yield made


def line(number: int, max_tokens: int = 2, **body: Any) -> dict[str, Any]:
    asked = {"prompt": [5, 6, 7 + number], "max_tokens": max_tokens, "seed": number, "ignore_eos": True}
    return {"custom_id": f"line-{number}", "method": "POST", "url": "/v1/completions", "body": asked | body}


def upload(client: openai.OpenAI, lines: list[dict[str, Any]]) -> str:
    content = "\n".join(map(json.dumps, lines)).encode()
    file: Any = client.files.create(file=("lines.jsonl", content), purpose="batch")
    return str(file.id)


def begin(client: openai.OpenAI, lines: list[dict[str, Any]], **more: Any) -> Any:
    file_id = upload(client, lines)
    window: Any = more.pop("completion_window", "24h")
    return client.batches.create(input_file_id=file_id, endpoint="/v1/completions", completion_window=window, **more)


def ended(client: openai.OpenAI, batch_id: str, within_s: float = 60) -> Any:
    wait_until(lambda: client.batches.retrieve(batch_id).status not in OPEN, within_s, "the batch's end")
    return client.batches.retrieve(batch_id)


def rows(client: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    if file_id is None:
        return []
    return [json.loads(row) for row in client.files.content(file_id).text.splitlines()]


def test_every_line_is_answered_as_if_it_were_sent_alone(client: openai.OpenAI, cluster: Cluster) -> None:
    lines = [line(number) for number in range(20)]
    lines[7] = line(7, temperature=-3)
    made = begin(client, lines, metadata={"run": "1"})
    assert made.status == "validating" and made.metadata == {"run": "1"}
    found = ended(client, made.id)
    assert found.status == "completed"
    assert (found.request_counts.total, found.request_counts.completed, found.request_counts.failed) == (20, 19, 1)
    assert found.created_at <= found.in_progress_at <= found.finalizing_at <= found.completed_at
    answered = rows(client, found.output_file_id)
    assert [row["custom_id"] for row in answered] == [f"line-{number}" for number in range(20) if number != 7]
    alone = httpx.post(cluster.url + "/v1/completions", json=lines[3]["body"], timeout=30).json()
    assert answered[3]["response"]["status_code"] == 200 and answered[3]["error"] is None
    assert answered[3]["response"]["body"]["choices"] == alone["choices"]
    (failed,) = rows(client, found.error_file_id)
    assert failed["custom_id"] == "line-7" and failed["response"]["status_code"] == 400
    assert "temperature" in failed["response"]["body"]["error"]["message"]
    assert client.batches.list(limit=1).data[0].id == made.id
    counted = httpx.get(cluster.url + "/metrics").text
    assert 'pdq_batch_lines_total{outcome="completed"} 19.0' in counted


def test_a_killed_batch_worker_repeats_no_finished_line(client: openai.OpenAI, cluster: Cluster) -> None:
    num_lines = 40
    before = httpx.get(cluster.url + "/metrics").text
    made = begin(client, [line(number, 60) for number in range(num_lines)])
    wait_until(lambda: client.batches.retrieve(made.id).request_counts.completed >= 6, 30, "the first lines")
    (worker,) = [name for name, process in cluster.processes.items() if name.startswith("batch") and not process.poll()]
    cluster.kill(worker)
    at_death = client.batches.retrieve(made.id).request_counts.completed
    assert at_death < num_lines
    cluster.start("batch", PDQ_BATCH__API_URL=cluster.url)
    found = ended(client, made.id)
    assert found.status == "completed" and found.request_counts.completed == num_lines
    answered = Counter(row["custom_id"] for row in rows(client, found.output_file_id))
    assert answered == Counter(f"line-{number}" for number in range(num_lines))
    # What ran in the cluster at the kill was waited for and not computed a second time.
    posted = series(httpx.get(cluster.url + "/metrics").text) - series(before)
    assert posted == num_lines


def series(text: str) -> int:
    """Prompts that were admitted."""
    (value,) = [row.split()[-1] for row in text.splitlines() if row.startswith("pdq_prompt_tokens_count")]
    return int(float(value))


def test_a_cancelled_batch_keeps_what_it_has_and_leaves_nothing_running(
    client: openai.OpenAI, cluster: Cluster
) -> None:
    made = begin(client, [line(number, 300) for number in range(24)])
    wait_until(lambda: client.batches.retrieve(made.id).request_counts.completed >= 1, 30, "the first line")
    assert client.batches.cancel(made.id).status == "cancelling"
    found = ended(client, made.id, 20)
    assert found.status == "cancelled"
    answered, failed = rows(client, found.output_file_id), rows(client, found.error_file_id)
    assert len(answered) == found.request_counts.completed < 24
    assert {row["error"]["code"] for row in failed} == {"batch_cancelled"}
    assert sorted(row["custom_id"] for row in answered + failed) == sorted(f"line-{number}" for number in range(24))
    wait_until(lambda: not any(worker.num_running for worker in cluster.workers()), 5, "nothing runs any more")


def test_a_batch_whose_window_ends_expires(client: openai.OpenAI) -> None:
    made = begin(client, [line(number, 400) for number in range(24)], completion_window="2s")
    found = ended(client, made.id, 20)
    assert found.status == "expired" and found.expired_at >= found.expires_at
    assert {row["error"]["code"] for row in rows(client, found.error_file_id)} == {"batch_expired"}


def test_an_input_that_cannot_be_run_fails_and_says_where(client: openai.OpenAI) -> None:
    bad = [line(0), line(0), line(1) | {"url": "/v1/embeddings"}, line(2, stream=True)]
    found = ended(client, begin(client, bad).id, 20)
    assert found.status == "failed" and found.request_counts.completed == 0
    problems = {(problem.line, problem.code, problem.param) for problem in found.errors.data}
    assert problems == {
        (2, "duplicate_custom_id", "custom_id"),
        (3, "mismatched_endpoint", "url"),
        (4, "invalid_value", "body.stream"),
    }


def test_the_end_is_told_to_who_wants_to_know_and_signed(client: openai.OpenAI, receiver: Receiver) -> None:
    with pytest.raises(openai.BadRequestError, match="webhook_url"):
        begin(client, [line(0)], extra_body={"webhook_url": "http://169.254.169.254/hooks/"})
    url = f"http://127.0.0.1:{receiver.server_port}/hooks/done"
    made = begin(client, [line(0)], extra_body={"webhook_url": url})
    assert ended(client, made.id).status == "completed"
    wait_until(lambda: len(receiver.taken) == 2, 20, "a second try after the 500")
    first, second = receiver.taken
    assert first[0]["webhook-id"] == second[0]["webhook-id"]
    event = client.webhooks.unwrap(second[1], second[0], secret=SECRET)
    assert event.type == "batch.completed" and event.data.id == made.id
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.unwrap(second[1].replace("completed", "failed"), second[0], secret=SECRET)


def test_people_submit_watch_and_fetch(cluster: Cluster, tmp_path: Path) -> None:
    def pdq(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cli", "batch", *arguments, "--url", cluster.url]
        return subprocess.run(command, cwd=ROOT, env=cluster.env, capture_output=True, text=True, timeout=60)

    lines = [line(number) for number in range(3)] + [line(3, temperature=-3)]
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, lines)))
    submitted = pdq("submit", str(tmp_path / "lines.jsonl"), "--endpoint", "/v1/completions", "--wait")
    assert submitted.returncode == 0, submitted.stderr
    batch_id = submitted.stdout.strip()
    assert "completed: 3 completed and 1 failed of 4" in submitted.stderr
    out, errors = tmp_path / "out", tmp_path / "errors"
    assert pdq("fetch", batch_id, "--out", str(out), "--errors", str(errors)).returncode == 0
    assert [json.loads(row)["custom_id"] for row in out.read_text().splitlines()] == ["line-0", "line-1", "line-2"]
    assert [json.loads(row)["custom_id"] for row in errors.read_text().splitlines()] == ["line-3"]
    late = pdq("cancel", batch_id)
    assert late.returncode == 1 and "cannot be cancelled, it is completed" in late.stderr
    assert pdq("status", "batch_x").returncode == 1


def test_files_are_listed_read_and_deleted(client: openai.OpenAI) -> None:
    file_id = upload(client, [line(0)])
    assert client.files.retrieve(file_id).bytes == len(json.dumps(line(0)))
    assert client.files.content(file_id).json() == line(0)
    newest = client.files.list(limit=1)
    assert newest.data[0].id == file_id and newest.has_more
    assert client.files.delete(file_id).deleted
    for ask in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            ask(file_id)


def test_a_worker_that_is_asked_to_stop_does_so_at_once(client: openai.OpenAI, cluster: Cluster) -> None:
    made = begin(client, [line(number, 600) for number in range(16)])
    wait_until(lambda: client.batches.retrieve(made.id).status == "in_progress", 20, "its begin")
    wait_until(lambda: any(worker.num_running for worker in cluster.workers()), 20, "running lines")
    began = time.monotonic()
    alive = [name for name, process in cluster.processes.items() if name.startswith("batch") and process.poll() is None]
    assert [cluster.stop(name, 15) for name in alive] == [0]
    assert time.monotonic() - began < 15
    assert "batch_worker_stopped" in cluster.log(alive[0])
    cluster.start("batch", PDQ_BATCH__API_URL=cluster.url)
    found = ended(client, made.id)
    assert found.request_counts.completed == 16
