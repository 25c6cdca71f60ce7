"""The relay bench: its arithmetic, what it does not let pass, and one small run over real processes."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench.cli import app
from bench.process_tree import ticks_of_tree
from bench.relay.case import LEAST_STEPS, Case, flat_out, paced
from bench.relay.cli import HEADER, row_of
from bench.relay.latency import Broken, WorkerReport, latencies_ns, result_of
from bench.relay.stream_bytes import is_begun, is_whole, token_times
from cli.child import ROOT
from cli.janitor import is_alive
from tests.api.tiny_models import BYTE_LEVEL_CONFIG, byte_level_tokenizer, write_model

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"
MS = 1_000_000


def frame(count: int, reason: bytes = b"null") -> bytes:
    data = b'id: %d\ndata:{"token":{"count_output_tokens":%d},"finish_reason":%b}\n\n' % (count - 1, count, reason)
    return b"%x\r\n%b\r\n" % (len(data), data)


def stream(*frames: bytes) -> bytes:
    return HEAD + b"".join(frames) + END


WHOLE = stream(frame(1), frame(2), frame(3, b'"length"'))


def test_a_paced_case_asks_for_the_rate_but_for_no_step_that_is_too_short() -> None:
    assert paced(64, 8.0, 6400) == Case(64, 800, 0.01)
    assert paced(1, 8.0, 6400) == Case(1, 1600, 0.005)
    assert paced(1000, 0.1, 1000).num_steps == LEAST_STEPS
    assert flat_out(64, 64_000) == Case(64, 1000, 0.0)
    assert Case(64, 800, 0.01).num_tokens == 51_200


def test_a_token_arrives_with_the_last_byte_of_its_frame() -> None:
    cut = WHOLE.index(b'{"token":{"count_output_tokens":2')
    reads = [(10, WHOLE[:cut]), (20, WHOLE[cut : cut + 5]), (30, WHOLE[cut + 5 :])]
    assert token_times(reads) == [10, 30, 30]
    assert token_times([(place, WHOLE[place : place + 1]) for place in range(len(WHOLE))]) == [
        WHOLE.index(b"\n\n", WHOLE.index(b'output_tokens":%d' % count)) + 1 for count in (1, 2, 3)
    ]
    assert is_whole(END) and not is_whole(frame(1))
    assert is_begun(WHOLE) and not is_begun(b"HTTP/1.1 503 Busy\r\n")


@pytest.mark.parametrize(
    "body",
    [
        b"HTTP/1.1 503 Busy\r\n\r\n" + END,
        b"",
        stream(frame(1), frame(3, b'"length"')),
        stream(frame(1), frame(2), frame(2, b'"length"')),
        stream(frame(2), frame(1, b'"length"')),
        stream(frame(1), frame(2)),
        stream(frame(1), frame(2, b'"abort"')),
        WHOLE.removesuffix(END),
    ],
)
def test_a_stream_that_is_not_as_it_should_be_is_no_measurement(body: bytes) -> None:
    with pytest.raises(ValueError):
        token_times([(0, body)])


def test_a_latency_is_from_the_step_to_the_arrival_and_the_first_token_has_none() -> None:
    stamps = [100 * MS, 200 * MS]
    streams = [[5, 101 * MS, 202 * MS], [6, 103 * MS, 204 * MS]]
    assert sorted(latencies_ns(stamps, streams)) == [1 * MS, 2 * MS, 3 * MS, 4 * MS]
    report = WorkerReport(stamps, cpu_s=4e-6, num_round_trips=3, num_refused=0)
    result = result_of(Case(2, 2, 0.1), report, streams, {"api": 8e-6, "redis": 2e-6, "client": 4e-6})
    assert result.tokens_per_s == pytest.approx(4 / 0.104)
    assert [result.p50_ms, result.max_ms] == pytest.approx([2.5, 4.0])
    assert result.cpu_us_per_token == pytest.approx({"api": 2.0, "redis": 0.5, "client": 1.0, "worker": 1.0})
    assert result.round_trips_per_step == 1.5
    assert len(row_of(result)) == len(HEADER)


@pytest.mark.parametrize(
    ("report", "streams"),
    [
        (WorkerReport([1, 2], 0, 2, 0), [[0, 1, 2], [0, 1]]),
        (WorkerReport([1, 2], 0, 2, 0), [[0, 1, 2, 3]]),
        (WorkerReport([1, 2], 0, 2, 1), [[0, 1, 2]]),
        (WorkerReport([1], 0, 2, 0), [[0, 1]]),
    ],
)
def test_what_is_missing_or_refused_breaks_it(report: WorkerReport, streams: list[list[int]]) -> None:
    with pytest.raises(Broken):
        result_of(Case(len(streams), 2, 0.0), report, streams, {})


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = write_model(tmp_path_factory.mktemp("models") / "tiny", byte_level_tokenizer(), BYTE_LEVEL_CONFIG, {})
    (folder / "model.safetensors").touch()
    yield folder


def test_every_token_comes_once_and_in_order_through_real_processes(model_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    options = ["--streams", "3", "--duration-s", "0.3", "--flat-out-streams", "40", "--flat-out-tokens", "2000"]
    done = CliRunner().invoke(app, ["relay", *options, "--model", str(model_dir), "--json", str(path)])
    assert done.exit_code == 0, done.output
    document = json.loads(path.read_text())
    cases = [result["case"] for result in document["results"]]
    assert [(case["num_streams"], case["num_steps"]) for case in cases] == [(3, 60), (40, 50)]
    for result in document["results"]:
        assert 1 <= result["round_trips_per_step"] <= 2
        assert 0 < result["p50_ms"] <= result["p99_ms"] <= result["max_ms"]
        assert min(result["cpu_us_per_token"].values()) >= 0
    assert done.output.count("\n| ") == 2  # a row each


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_it(model_dir: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "bench.relay", "--model", str(model_dir)]
    # Of its own: who is killed leaves its folder. A socket's path is short, tmp_path is not.
    with (
        tempfile.TemporaryDirectory(prefix="pdq-") as folder,
        subprocess.Popen(
            command, cwd=ROOT, env=os.environ | {"TMPDIR": folder}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process,
    ):
        give_up = time.monotonic() + 60
        while len(children := set(ticks_of_tree(process.pid)) - {process.pid}) < 3:  # redis, worker, API
            assert process.poll() is None and time.monotonic() < give_up
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(30) == (143 if number is signal.SIGTERM else -number)
        assert number is not signal.SIGTERM or not any(Path(folder).iterdir())
    while any(is_alive(child) for child in children):
        assert time.monotonic() < give_up, "left behind"
        time.sleep(0.02)
