"""The comparison: a whole run against scripted servers, from their start to their end."""

import asyncio
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from bench.chaos.toy_model import write_byte_tokenizer
from bench.compare import half_billion
from bench.compare.document import HALF_BILLION, Document
from bench.compare.first_words import first_words
from bench.compare.measure import Measurement
from bench.compare.plan import Plan
from bench.compare.run_server import running
from bench.in_process import InProcessPrefill
from bench.peers.server import CACHES, PORT, Server, Style
from bench.peers.workshop import PeerFailed
from bench.process_tree import ticks_of_tree
from bench.workload import Concurrency, Group, Poisson, Workload
from settings.loading import load_settings
from tests.bench.comparison import column, document

SCRIPTED = (sys.executable, "-m", "tests.bench.scripted_server", PORT)


def scripted(name: str, style: Style) -> Server:
    model_name = "m" if style == "openai" else ""
    return Server(name, "16-bit", SCRIPTED, style, model_name=model_name, is_peer=style == "openai")


def test_a_server_is_measured_from_its_start_to_its_end(tmp_path: Path) -> None:
    workloads = (
        Workload("w1", (Group("all", Concurrency(1), 16, 4, num_requests=3),)),
        Workload("w2", (Group("all", Concurrency(4), 16, 4, num_requests=8),)),
        Workload("w4", (Group("all", Poisson(1.0), 16, 4, duration_s=0.5),)),
    )
    plan = Plan(workloads, (8.0, 16.0, 32.0), 1, True, 0, 7)
    servers = [scripted("pdq", "lightllm"), scripted("peer", "openai")]
    made = document(*(replace(column(server.name), is_peer=server.is_peer) for server in servers))
    lines: list[str] = []
    for server in servers:
        caching = replace(server, cache_environment={"CACHE": f"{CACHES}/code"})
        measurement = Measurement(made, plan, caching, HALF_BILLION, 0, lines.append, tmp_path)
        asyncio.run(measurement.run(Path("/nowhere")))
    assert [(start.server, start.is_first) for start in made.starts] == [
        ("pdq", True), ("pdq", False), ("peer", True), ("peer", False)
    ]  # fmt: skip
    assert all(start.ready_s > 0 for start in made.starts)
    for name in ("pdq", "peer"):
        attempts = [one for one in made.attempts if one.server == name]
        assert [one.workload for one in attempts][:2] == ["w1", "w2"]
        # It is fast: the search goes up from its first rate and ends at the highest.
        assert attempts[-1].nominal_rps == 32.0
        assert all(one.summaries[0].num_succeeded == one.summaries[0].num_sent > 0 for one in attempts)
        assert all(one.cpu.server_s is not None for one in attempts)
    assert {memory.server for memory in made.memories} == {"pdq", "peer"}
    assert all(memory.pss_bytes > 1 << 20 for memory in made.memories)
    assert msgspec.json.decode(msgspec.json.encode(made), type=Document) == made
    assert any(line.startswith("peer · w4 in ") for line in lines)


def test_a_server_that_ends_at_once_is_told_with_the_end_of_its_log() -> None:
    async def start(server: Server) -> None:
        async with running(server):
            pass

    program = "print('no such model'); raise SystemExit(4)"
    server = Server("broken", "16-bit", (sys.executable, "-c", program, PORT), "lightllm")
    with pytest.raises(PeerFailed, match=r"(?s)broken ended with code 4.*no such model"):
        asyncio.run(start(server))


# A compiler that leaves what it made where the environment says, and says in its log what it found.
CACHING = """
import asyncio, os, pathlib, sys
from tests.bench.scripted_server import main
made = pathlib.Path(os.environ["CACHE"])
if made.exists():
    raise SystemExit("found " + made.read_text())
made.write_text("code")
asyncio.run(main(int(sys.argv[1])))
"""


def test_the_second_start_finds_what_the_first_has_left(tmp_path: Path) -> None:
    command = (sys.executable, "-c", CACHING, PORT)
    server = Server("caching", "16-bit", command, "lightllm", cache_environment={"CACHE": f"{CACHES}/code"})
    made = document()
    plan = Plan((), (), 1, True, 0, 7)
    with pytest.raises(PeerFailed, match="found code"):
        asyncio.run(Measurement(made, plan, server, HALF_BILLION, 0, lambda line: None, tmp_path).run(tmp_path))
    assert [start.is_first for start in made.starts] == [True]


@pytest.mark.parametrize("style", ["lightllm", "openai"])
def test_the_first_words_are_what_the_server_answers(style: Style, tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path)

    async def ask() -> str:
        async with running(scripted("any", style)) as this:
            return await first_words(this, tmp_path)

    assert asyncio.run(ask()) == "x" * 12


def test_the_random_checkpoint_is_one_that_the_engine_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"HIDDEN": 64, "NUM_LAYERS": 2, "NUM_HEADS": 4, "NUM_KV_HEADS": 2, "HEAD_DIM": 16, "INTERMEDIATE": 96}
    for name, size in (sizes | {"VOCABULARY": 512}).items():
        monkeypatch.setattr(half_billion, name, size)
    demo, target = tmp_path / "demo", tmp_path / "models" / "random"
    demo.mkdir()
    write_byte_tokenizer(demo)
    (demo / "tokenizer_config.json").write_text("{}")
    half_billion.make_half_billion(target, demo)
    written = (target / "model.safetensors").stat().st_mtime_ns
    half_billion.make_half_billion(target, demo)
    assert (target / "model.safetensors").stat().st_mtime_ns == written  # made once
    settings = load_settings({"model": {"path": str(target), "device": "cpu"}})
    assert InProcessPrefill(settings, 16, 1, lambda line: None).prefill([1, 2, 3]) > 0


def test_nothing_of_a_server_is_left() -> None:
    async def run() -> int:
        async with running(scripted("pdq", "lightllm")) as this:
            return this.pid

    pid = asyncio.run(run())
    assert not Path(f"/proc/{pid}").exists()


# A run of ten minutes against a scripted server, which says when it has begun.
ENDLESS = """
import asyncio
from pathlib import Path
import engine.model_files
from bench.compare import jobs, measure
from bench.compare.plan import Plan
from bench.workload import Concurrency, Group, Workload
from tests.bench.comparison import document
from tests.bench.test_compare_run import scripted

async def words(running, model_dir):
    return "words"

engine.model_files.resolve_model = lambda settings, report: Path("/nowhere")
measure.first_words = words
jobs._servers = lambda names, model_dir, say: [scripted("pdq", "lightllm")]
plan = Plan((Workload("w1", (Group("all", Concurrency(1), 16, 4, duration_s=600.0),)),), (1.0,), 1, False, 0, 7)
jobs.measure_all(document(), plan, ["pdq"], False, None, lambda line: print(line, flush=True))
"""


def test_a_run_that_is_told_to_end_takes_its_server_along() -> None:
    with subprocess.Popen([sys.executable, "-c", ENDLESS], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if b"says 'words'" in line:
                break
        (server,) = ticks_of_tree(process.pid).keys() - {process.pid}
        process.terminate()
        try:
            process.wait(60)
        finally:
            process.kill()
    assert not Path(f"/proc/{server}").exists()
