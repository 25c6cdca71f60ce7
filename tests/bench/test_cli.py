"""`pdq bench` as a person calls it: the table, the JSON and the exit status, against a scripted server in a thread."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench.cli import app
from bench.machine import CpuClock, read_machine
from tests.bench.scripted_server import Script, Server, scripted_server


@contextmanager
def server_thread(script: Callable[[int], Script]) -> Iterator[Server]:
    started, stop = threading.Event(), asyncio.Event()
    found: list[Server] = []
    loops: list[asyncio.AbstractEventLoop] = []

    async def main() -> None:
        async with scripted_server(script) as server:
            found.append(server)
            loops.append(asyncio.get_running_loop())
            started.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    assert started.wait(10)
    try:
        yield found[0]
    finally:
        loops[0].call_soon_threadsafe(stop.set)
        thread.join(10)


def test_a_run_writes_a_table_and_json(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    with server_thread(lambda index: Script(status=503) if index == 3 else Script()) as server:
        options = ["--url", server.url, "--concurrency", "2", "--num-requests", "6", "--output-tokens", "4"]
        result = CliRunner().invoke(app, [*options, "--warmup", "1", "--json", str(path), "--label", "mine"])
    assert result.exit_code == 0, result.output
    assert "succeeded 5/6" in result.output
    assert "FAILED 1 x http_503" in result.output
    assert "client CPU" in result.output
    document = json.loads(path.read_text())
    assert document["label"] == "mine"
    (summary,) = document["summaries"]
    assert (summary["num_sent"], summary["num_succeeded"], summary["output_tokens"]) == (6, 5, 20)
    assert summary["failures"] == [{"kind": "http_503", "count": 1, "example": '{"message": "Server is busy"}'}]
    assert len(document["requests"]) == 6
    assert sorted(len(request["arrivals_ms"]) for request in document["requests"]) == [0, 4, 4, 4, 4, 4]
    assert document["machine"]["num_cores"] >= 1
    assert document["command"]
    assert len(server.bodies) == 7  # the warm-up is sent, and in no figure
    prompts = {str(body["inputs"]) for body in server.bodies}
    assert len(prompts) == 7
    assert not any(prompt in path.read_text() for prompt in prompts)


def test_the_same_prompt_seed_sends_the_same_prompts() -> None:
    sent = []
    for _ in range(2):
        with server_thread(lambda index: Script()) as server:
            options = ["--url", server.url, "--num-requests", "2", "--warmup", "0", "--prompt-seed", "5"]
            assert CliRunner().invoke(app, options).exit_code == 0
        sent.append([body["inputs"] for body in server.bodies])
    assert sent[0] == sent[1]


def test_a_server_of_openais_style_is_measured_with_token_ids() -> None:
    with server_thread(lambda index: Script(counts_by="end", tokens_per_chunk=2)) as server:
        options = ["--url", server.url, "--style", "openai", "--model", "m", "--extra-body", '{"top_k": 1}']
        result = CliRunner().invoke(app, [*options, "--num-requests", "2", "--output-tokens", "4", "--warmup", "0"])
    assert result.exit_code == 0, result.output
    assert "succeeded 2/2" in result.output
    assert "4 of 8 tokens had no frame of their own" in result.output
    assert {(body["model"], body["top_k"], len(body["prompt"])) for body in server.bodies} == {("m", 1, 128)}


def test_no_success_is_exit_status_1() -> None:
    with server_thread(lambda index: Script(num_tokens=3)) as server:
        result = CliRunner().invoke(app, ["--url", server.url, "--num-requests", "2", "--warmup", "1"])
    assert result.exit_code == 1
    assert "FAILED 2 x short_output" in result.output
    assert "warm-up: 1 of 1 requests failed" in result.output


def test_options_that_do_not_fit_are_exit_status_2() -> None:
    result = CliRunner().invoke(app, ["--concurrency", "1", "--request-rate", "1"])
    assert result.exit_code == 2
    assert CliRunner().invoke(app, ["--url", "nowhere"]).exit_code == 2


def test_queue_path_ends_with_a_sentence_when_the_server_fails() -> None:
    with server_thread(lambda index: Script(status=503)) as server:
        result = CliRunner().invoke(app, ["queue-path", "--url", server.url])
    assert result.exit_code == 1
    assert "http_503" in result.output


def test_cpu_clock_sees_the_work_of_this_process() -> None:
    import os

    clock = CpuClock(os.getpid())
    total = 0
    while clock.read().client_s < 0.05:
        total += sum(range(1000))
    use = clock.read()
    assert use.client_s >= 0.05
    assert use.wall_s > 0


def test_machine_facts() -> None:
    machine = read_machine()
    assert machine.num_cores >= 1
    assert machine.memory_bytes > 0
    assert "torch" in machine.packages


def test_a_key_is_sent_and_never_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    with server_thread(lambda index: Script()) as server:
        options = ["--url", server.url, "--num-requests", "1", "--warmup", "0", "--output-tokens", "2"]
        monkeypatch.setattr("sys.argv", ["pdq", "bench", "--api-key", "pdq-flag", "--api-key=pdq-flag"])
        assert CliRunner().invoke(app, [*options, "--api-key", "pdq-flag", "--json", str(path)]).exit_code == 0
        monkeypatch.setenv("PDQ_API_KEY", "pdq-variable")
        assert CliRunner().invoke(app, options).exit_code == 0
        bad = CliRunner().invoke(app, [*options, "--api-key", "two\nlines"])
    assert "Authorization: Bearer pdq-flag\r\n" in server.heads[0]
    assert "Authorization: Bearer pdq-variable\r\n" in server.heads[1]
    assert "pdq-flag" not in path.read_text() and "--api-key '***' '--api-key=***'" in path.read_text()
    assert bad.exit_code == 2 and "two" not in bad.output
