"""The comparison: what comes out of a document."""

from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from bench.compare.__main__ import main
from bench.compare.document import DEMO, HALF_BILLION, Document, Memory, Start, read
from bench.compare.document import write as write_document
from bench.compare.figures import Row, rows_of
from bench.compare.write_up import table, write_up
from bench.marked_place import put_into
from errors import ConfigError
from tests.bench.comparison import attempt, column, document, summary


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
