"""The comparison: which rates are tried, what comes out of a document, and a whole run against scripted servers."""

import asyncio
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import typer
from typer.testing import CliRunner

from bench.chaos.toy_model import write_byte_tokenizer
from bench.compare import half_billion
from bench.compare.__main__ import main
from bench.compare.document import DEMO, FORMAT_VERSION, HALF_BILLION, Attempt, Column, Document, Memory, Start, read
from bench.compare.document import write as write_document
from bench.compare.figures import Row, rows_of
from bench.compare.first_words import first_words
from bench.compare.measure import Measurement
from bench.compare.plan import Plan, chosen
from bench.compare.rate_search import first_rung, ladder, next_rung, real_rate
from bench.compare.run_server import running
from bench.compare.write_up import table, write_up
from bench.in_process import InProcessPrefill
from bench.machine import CpuUse, read_machine
from bench.marked_place import put_into
from bench.peers.server import CACHES, PORT, Server, Style
from bench.peers.workshop import PeerFailed
from bench.process_tree import ticks_of_tree
from bench.report import Distribution, Limits, Summary
from bench.workload import Concurrency, Group, Poisson, Workload
from messages import ConfigError
from settings import load_settings

W4 = Group("all", Poisson(4.0), 256, 64, duration_s=25.0)
EMPTY = Distribution(0, None, None, None, None, None)
CLEAN = CpuUse(10.0, 1.0, 8.0, 9.1, 0.1, True)


# -- which rates are tried ------------------------------------------------------------------------------------------


def search(limit: int, num_rungs: int, first: int) -> list[int]:
    """The rungs that are tried where all below `limit` are borne."""
    borne: dict[int, bool] = {}
    while (rung := next_rung(num_rungs, borne, first)) is not None:
        assert rung not in borne
        borne[rung] = rung < limit
    return list(borne)


@pytest.mark.parametrize(("limit", "tried"), [(0, [2, 1, 0]), (2, [2, 1]), (3, [2, 3]), (4, [2, 3, 4]), (5, [2, 3, 4])])
def test_the_search_ends_between_a_borne_rate_and_a_failed_one(limit: int, tried: list[int]) -> None:
    assert search(limit, 5, 2) == tried


def test_a_failure_below_a_success_does_not_end_the_search() -> None:
    assert next_rung(5, {1: False, 2: True}, 2) == 3


def test_the_first_rate_is_the_highest_below_the_guess() -> None:
    rates = [1.0, 2.0, 4.0]
    assert [first_rung(rates, guess) for guess in (0.5, 1.0, 3.9, 9.0, None)] == [0, 0, 1, 2, 1]


def test_the_ladder_rises_in_what_is_really_sent() -> None:
    rates = [real_rate(group, 0) for group in ladder(W4, (5, 4, 1, 2, 8, 8), 0)]
    assert rates == sorted(set(rates))
    assert all(0.5 < rate < 10 for rate in rates)


def test_every_attempt_has_prompts_of_its_own_and_every_server_the_same() -> None:
    plan = Plan((), (), 2, False, 0, 7)
    seeds = [
        plan.prompt_seed_of(name, number, round_) for name in ("w1", "w4") for number in (0, 1) for round_ in (0, 1)
    ]
    assert len(set(seeds)) == 8
    assert seeds == [
        Plan((), (), 1, True, 3, 7).prompt_seed_of(name, number, round_)
        for name in ("w1", "w4")
        for number in (0, 1)
        for round_ in (0, 1)
    ]


def test_a_quick_run_keeps_the_shapes() -> None:
    for whole, short in zip(chosen(["w1", "w3"], False), chosen(["w1", "w3"], True), strict=True):
        for group, shortened in zip(whole.groups, short.groups, strict=True):
            assert (group.prompt_tokens, group.arrivals) == (shortened.prompt_tokens, shortened.arrivals)
    assert chosen(["w1"], True)[0].groups[0].num_requests == 2


# -- what comes out of a document -----------------------------------------------------------------------------------


def summary(tokens_per_s: float, ttft_ms: float, group: str = "all", **others: float) -> Summary:
    itl = Distribution(10, 5.0, 5.0, 6.0, others.get("itl_p99", 7.0), 8.0)
    num_failed = int(others.get("num_failed", 0))
    return Summary(
        group=group,
        num_sent=8,
        num_succeeded=8 - num_failed,
        failures=[],
        duration_s=10.0,
        offered_rps=others.get("offered"),
        requests_per_s=1.0,
        output_tokens=1024,
        failed_output_tokens=0,
        untimed_output_tokens=0,
        output_tokens_per_s=tokens_per_s,
        total_tokens_per_s=2 * tokens_per_s,
        ttft_ms=Distribution(8, ttft_ms, ttft_ms, ttft_ms, ttft_ms, ttft_ms),
        itl_ms=itl,
        tpot_ms=EMPTY,
        e2e_ms=EMPTY,
        num_met_limits=8,
        attainment=others.get("attainment", 1.0),
        goodput_rps=1.0,
        send_delay_ms=EMPTY,
    )


def column(server: str, weights: str = "16-bit", is_peer: bool = True, model: str = DEMO) -> Column:
    return Column(server, model, weights, is_peer, f"{server} --port {PORT}", {"A": "1"}, {server: "1.0"})


def document(*columns: Column) -> Document:
    return Document(FORMAT_VERSION, "python -m bench.compare", read_machine(), Limits(1000, 60), 0, 7, list(columns))


def attempt(server: str, workload: str, *summaries: Summary, round_: int = 0, is_clean: bool = True) -> Attempt:
    return Attempt(server, DEMO, workload, round_, None, list(summaries), replace(CLEAN, is_clean=is_clean))


def row(made: Document, name: str) -> Row:
    return next(row for row in rows_of(made) if row.figure.name.startswith(name))


def number(made: Document, name: str, server: str) -> float:
    value = row(made, name).values[server]
    assert value is not None
    return value.number


def test_ratios_are_to_the_best_peer_of_the_same_precision() -> None:
    made = document(
        column("pdq", is_peer=False), column("A"), column("B"), column("pdq4", "4-bit", False), column("C", "4-bit")
    )
    for server, speed, ttft_ms in (("pdq", 60, 50), ("A", 30, 100), ("B", 40, 200), ("pdq4", 100, 30), ("C", 200, 60)):
        made.attempts.append(attempt(server, "w1", summary(speed, ttft_ms)))
    assert row(made, "W1 single").ratios == {"16-bit": 1.5, "4-bit": 0.5}
    assert row(made, "W1 TTFT").ratios == {"16-bit": 0.5, "4-bit": 0.5}


def test_of_rounds_the_median_and_of_unclean_ones_none_unless_all_are() -> None:
    made = document(column("A"), column("B"))
    for round_, (speed, is_clean) in enumerate([(10, True), (30, True), (20, True), (1000, False)]):
        made.attempts.append(attempt("A", "w1", summary(speed, 1.0), round_=round_, is_clean=is_clean))
    made.attempts.append(attempt("B", "w1", summary(5, 1.0, num_failed=2), is_clean=False))
    found = row(made, "W1 single").values
    assert found["A"] is not None and (found["A"].number, found["A"].note) == (20, "")
    assert found["B"] is not None and found["B"].note == "not clean, 2 failed"
    assert row(made, "W1 single").ratios["16-bit"] is None  # no pdq


def test_groups_of_w3_are_told_apart() -> None:
    made = document(column("A"))
    made.attempts.append(attempt("A", "w3", summary(100, 1.0, "steady", itl_p99=33.0), summary(4, 360.0, "long")))
    assert number(made, "W3 steady ITL p99", "A") == 33.0
    assert number(made, "W3 long", "A") == 360.0


def test_the_highest_rate_is_the_highest_that_was_borne() -> None:
    made = document(column("A"), column("B"), column("C"))
    for server, tried in (("A", [(2.0, 1.0), (4.0, 0.9), (6.0, 0.89)]), ("B", [(1.0, 0.5)]), ("C", [(8.0, 1.0)])):
        for offered, attainment in tried:
            made.attempts.append(attempt(server, "w4", summary(1, 1, offered=offered, attainment=attainment)))
    values = row(made, "W4").values
    said = {name: (value.number, value.note) for name, value in values.items() if value is not None}
    assert said == {"A": (4.0, "6.00 is not"), "B": (0.0, "1.00 is not"), "C": (8.0, "no higher one was tried")}


def test_starts_memory_and_the_other_model_have_rows_of_their_own() -> None:
    made = document(column("A"), column("B"), column("A", model=HALF_BILLION))
    made.starts += [Start("A", DEMO, True, 60.0), Start("A", DEMO, False, 4.0), Start("A", HALF_BILLION, False, 9.0)]
    made.starts += [Start("B", DEMO, False, 2.0)]
    made.memories += [Memory("A", DEMO, 1_600_000_000, 2_000_000_000)]
    made.attempts.append(replace(attempt("A", "w2", summary(400, 1.0)), model=HALF_BILLION))
    assert number(made, "first start", "A") == 60.0
    assert number(made, "first start", "B") == 2.0  # it has no caches that could be empty
    assert number(made, "second start", "A") == 4.0
    assert number(made, "memory", "A") == 1600
    assert number(made, "0.5B W2, output", "A") == 400
    assert not any(row.figure.name.startswith("W2") for row in rows_of(made))


def test_the_table_is_made_again_from_its_file(tmp_path: Path) -> None:
    made = document(column("pdq", is_peer=False), column("A"))
    made.attempts += [attempt("pdq", "w1", summary(52.8, 40)), attempt("A", "w1", summary(36.0, 53))]
    path, page = tmp_path / "run.json", tmp_path / "page.md"
    write_document(made, path)
    assert read(path) == made
    page.write_text("before\n<!-- begin comparison -->\nold\n<!-- end comparison -->\nafter\n")
    app = typer.Typer()
    app.command()(main)
    result = CliRunner().invoke(app, ["--from", str(path), "--into", str(page)])
    assert result.exit_code == 0, result.output
    assert table(made) in result.output
    assert "| W1 single stream, output tokens/s | 52.8 | 36.0 | 1.47                   |" in table(made)
    assert page.read_text() == (
        f"before\n<!-- begin comparison -->\n\n{write_up(made)}\n\n<!-- end comparison -->\nafter\n"
    )
    assert "`A=1 A --port {port}`" in page.read_text()


def test_files_that_are_no_document_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text("{}")
    with pytest.raises(ConfigError, match="--from"):
        read(path)
    write_document(replace(document(), format_version=99), path)
    with pytest.raises(ConfigError, match="format 99"):
        read(path)
    with pytest.raises(ConfigError, match="no place"):
        put_into(path, "comparison", "text")


def test_options_that_do_not_fit_are_exit_status_2() -> None:
    app = typer.Typer()
    app.command()(main)
    for options in (["--only", "gpt"], ["--workload", "w9"], ["--rates", "1,x"], ["--rates", "0"]):
        assert CliRunner().invoke(app, options).exit_code == 2, options


# -- a whole run ----------------------------------------------------------------------------------------------------

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
from tests.bench.test_compare import document, scripted

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
        process.wait(60)
    assert not Path(f"/proc/{server}").exists()
