"""`pdq status`: what it shows of a cluster, in which width, and how it goes on when Redis does not."""

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from broker.client import open_broker
from broker.keys import LOCAL
from broker.queue_waits import Wait
from cli.__main__ import main
from cli.child import ROOT
from cli.cluster_state import ClusterState, Latencies, Sequences
from cli.own_cluster import OwnCluster, find_own_clusters, note_api_url
from cli.status_picture import document, picture, rates_between
from messages.job import Phase, PrefillJob
from messages.kv_transfer import TransferCount
from messages.request import Priority
from messages.wire import encode
from messages.worker_status import Role, WorkerState, WorkerStatus
from settings.broker import QueueSettings, RedisSettings, StreamSettings
from tests.cli.terminal import CTRL_C, terminal
from tests.conftest import RedisServer

LATENCIES = Latencies(45.0, 120.0, None, 9.12, 20.0, 1234.5, 432.1)


def worker(role: Role = Role.DECODE, number: int = 1, **changes: object) -> WorkerStatus:
    known: dict[str, object] = {"num_blocks": 100, "free_blocks": 75, "capacity_tokens": 1600, "max_running": 64}
    state = WorkerState.READY
    return WorkerStatus(f"{role}-{number:012x}", role, state, "host", 7, 0, **(known | changes))  # type: ignore[arg-type]


def state_of(*workers: WorkerStatus, at_s: float = 10.0, latencies: Latencies | None = LATENCIES) -> ClusterState:
    waits = [Wait(queue, priority, 0, 0.0) for queue in (*Role, LOCAL) for priority in Priority]
    waits[0] = Wait(Role.PREFILL, Priority.HIGH, 2, 0.25)
    waits[1] = Wait(Role.PREFILL, Priority.NORMAL, 4, 12.5)
    return ClusterState(
        at_s=at_s,
        redis_url="redis://somewhere",
        api_url="http://127.0.0.1:8080",
        workers=workers,
        waits=waits,
        in_work={(wait.queue, wait.priority): int(wait.queue is Role.DECODE) for wait in waits},
        sequences={phase: Sequences(3, 1000) for phase in Phase},
        latencies=latencies,
        why_no_latencies="" if latencies else "nobody there",
    )


def shown(state: ClusterState, width: int, **more: object) -> list[str]:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(picture(state, width, **more))  # type: ignore[arg-type]
    return [line.rstrip() for line in capture.get().splitlines()]


def test_two_workers_fit_an_old_terminal() -> None:
    decode = worker(transfers={"shared_memory": TransferCount(12, 3_000_000, 1)}, sequence_s=3.21, num_running=16)
    lines = shown(state_of(worker(Role.PREFILL, tokens_per_s=1234.0), decode), 80)
    assert len(lines) <= 24 and max(map(len, lines)) <= 80
    text = "\n".join(lines)
    (row,) = [line.split() for line in lines if line.split()[:2] == [decode.worker_id, "ready"]]
    assert row[2:] == ["16/64", "25%", "3.2", "s/seq"]
    assert "1,234 tok/s" in text
    (row,) = [line.split() for line in lines if line.strip().startswith("prefill ")]
    assert row == ["prefill", "6", "(2", "high)", "12.5", "s", "0"]
    assert ["decode", "0", "3"] in [line.split() for line in lines]
    assert [decode.worker_id, "shared_memory", "12", "3", "1"] in [line.split() for line in lines]
    assert "3 prefill queued, 3 prefilling, 3 decode queued, 3 decoding" in text and "tokens: 4,000" in text
    assert "432.1 tokens/s" in text and "TTFT p50 45.0 ms, p95 120.0 ms" in text and "p99 1,234.5 ms" in text
    assert "host:7" not in text and "host:7" in "\n".join(shown(state_of(decode), 160))


def test_what_is_not_well_is_said() -> None:
    loading = msgspec.structs.replace(worker(number=2, detail="loading weights 43 %"), state=WorkerState.LOADING)
    text = "\n".join(shown(state_of(worker(idle_s=7.25), loading, latencies=None), 100))
    assert "loading weights 43 %" in text and "no progress for 7.2 s" in text and "last minute: nobody there" in text
    assert "none is alive" in "\n".join(shown(state_of(), 80))
    assert shown(state_of(), 80, trouble="Redis does not answer")[0] == "Redis does not answer"


def test_a_rate_is_of_the_time_between_two_looks() -> None:
    before = state_of(worker(Role.PREFILL, prefilled_tokens=100, tokens_per_s=5000.0), at_s=10.0)
    now = state_of(worker(Role.PREFILL, prefilled_tokens=500, tokens_per_s=5000.0), worker(number=2), at_s=12.0)
    rates = rates_between(before, now)
    assert rates == {now.workers[0].worker_id: 200.0}
    assert "200 tok/s" in "\n".join(shown(now, 80, rates=rates))


def test_the_document_has_what_the_picture_has() -> None:
    body = json.loads(json.dumps(document(state_of(worker(num_running=3)))))
    assert body["workers"][0]["num_running"] == 3 and body["workers"][0]["up_s"] == 10.0
    assert body["queues"][1] == {
        **{"queue": "prefill", "priority": "normal", "num_waiting": 4, "oldest_s": 12.5},
        "num_in_work": 0,
    }
    assert body["sequences"]["decoding"] == {"count": 3, "tokens": 1000}
    assert body["last_minute"]["ttft_p50_ms"] == 45.0


@contextmanager
def ended(code: int) -> Iterator[None]:
    with pytest.raises(SystemExit) as raised:
        yield
    assert (raised.value.code or 0) == code


def test_one_look_as_json(
    redis_settings: RedisSettings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def put_a_job() -> None:
        async with open_broker(redis_settings, QueueSettings(), StreamSettings()) as broker:
            await broker.redis.xadd(broker.keys.prefill_queue(), {"id": "r:0", "job": encode(PrefillJob("r", 0, 1))})

    asyncio.run(put_a_job())
    monkeypatch.setenv("PDQ_REDIS__KEY_PREFIX", redis_settings.key_prefix)
    with ended(0):
        main(["status", "--json", "--redis-url", redis_settings.url, "--url", "http://127.0.0.1:9"])
    body = json.loads(capsys.readouterr().out)
    waiting = {(one["queue"], one["priority"]): one["num_waiting"] for one in body["queues"]}
    assert waiting["prefill", "normal"] == 1 and sum(waiting.values()) == 1
    assert body["last_minute"] is None and "cannot be reached" in body["why_no_last_minute"]


@pytest.mark.parametrize("wrong", [["--watch", "--json"], ["--url", "somewhere"]])
def test_what_does_not_fit_is_exit_code_2(wrong: list[str], redis_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with ended(2):
        main(["status", "--redis-url", redis_url, *wrong])
    assert capsys.readouterr().err.count("\n") == 1


def test_watching_survives_redis_and_ctrl_c_leaves_a_clean_terminal(own_redis: RedisServer) -> None:
    arguments = (
        "status",
        "--watch",
        "--interval-s",
        "0.1",
        "--redis-url",
        own_redis.url,
        "--url",
        "http://127.0.0.1:9",
    )
    with terminal(*arguments) as screen:
        screen.wait_for("none is alive")
        own_redis.stop()
        screen.wait_for("Redis does not answer")
        own_redis.start()
        # A picture of the time after: those before it all began with the trouble.
        screen.wait_for("Trying on.")
        while "Redis does not answer" in screen.wait_for("none is alive"):
            pass
        screen.press(CTRL_C)
        assert screen.wait_end() == 0
        assert "Traceback" not in screen.text and screen.raw.rindex("\x1b[?25h") > screen.raw.rfind("\x1b[?25l")


def test_piped_it_prints_one_picture_after_the_other(redis_url: str) -> None:
    command = [sys.executable, "-m", "cli", "status", "--watch", "--interval-s", "0.1", "--redis-url", redis_url]
    with subprocess.Popen(
        [*command, "--url", "http://127.0.0.1:9"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        num_pictures = 0
        while num_pictures < 2:
            line = process.stdout.readline()
            assert line and "\x1b" not in line
            num_pictures += "none is alive" in line
        process.terminate()
        assert process.wait(20) == 0 and process.stderr.read() == ""


def test_a_serve_of_ones_own_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("cli.own_cluster.folders", lambda: [tmp_path])
    for name in ("pdq-a", "pdq-b", "pdq-gone"):
        (tmp_path / name).mkdir()
        note_api_url(tmp_path / name, f"http://127.0.0.1/{name}")
    (tmp_path / "pdq-redis-of-a-test").mkdir()
    with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as other:
        monkeypatch.chdir(tmp_path)  # a socket's path is short
        first.bind("pdq-a/redis.sock")
        first.listen()
        other.bind("pdq-redis-of-a-test/redis.sock")
        other.listen()
        found = find_own_clusters()
    assert found == [OwnCluster(f"unix://{tmp_path}/pdq-a/redis.sock", "http://127.0.0.1/pdq-a")]


def test_of_several_one_has_to_be_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    several = [OwnCluster(f"unix:///{name}", f"http://127.0.0.1/{name}") for name in "ab"]
    monkeypatch.setattr("cli.status.find_own_clusters", lambda: several)
    monkeypatch.delenv("PDQ_REDIS__URL", raising=False)
    with ended(2):
        main(["status"])
    said = capsys.readouterr().err
    assert "--redis-url unix:///a" in said and "--redis-url unix:///b" in said
