"""`pdq config`: where values come from, what they may be, and everything that is wrong at once."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.__main__ import main
from cli.config import unit_of
from settings.loading import Settings

Pdq = Callable[..., tuple[int, str, str]]


@pytest.fixture
def config(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Pdq:
    # What a file sets is this process's from then on: not the next test's.
    monkeypatch.setattr("os.environ", dict(os.environ))

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["config", *arguments])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def test_each_value_has_its_unit_bounds_and_origin(
    config: Pdq, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PDQ_API__PORT", "9000")
    file = tmp_path / ".env"
    file.write_text("# comment\nSHM_SIZE=16gb\nPDQ_API__PORT=9001\nPDQ_QUEUE__LEASE_S=3.5\n")
    code, out, _ = config("show", "--env-file", str(file))
    assert code == 0
    lines = out.splitlines()
    before = {line: lines[place - 1] for place, line in enumerate(lines)}
    assert before["PDQ_API__PORT=9000"].endswith("[>= 0, <= 65535; environment]")
    assert before["PDQ_QUEUE__LEASE_S=3.5"].endswith(f"[seconds, > 0; {file}]")
    assert before["PDQ_KV__BLOCK_SIZE=16"].endswith("[16|32; default]")
    assert before["# PDQ_KV__NUM_BLOCKS="].endswith("[>= 1; default]")
    assert before["# PDQ_KV_TRANSFER__REQUIRE="].endswith("[shared_memory|cuda_ipc|nixl|nccl|gloo; default]")
    assert len([line for line in lines if "PDQ_" in line and "=" in line]) >= sum(
        len(type(section.default).model_fields) for section in Settings.model_fields.values()
    )


def test_a_section_and_what_was_changed(config: Pdq, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PDQ_KV__NUM_BLOCKS", "321")
    assert config("show", "--changed")[1].count("PDQ_") == 1
    _, out, _ = config("show", "KV")
    assert "PDQ_KV__NUM_BLOCKS=321" in out and "PDQ_KV__BLOCK_SIZE=16" in out and "PDQ_API__" not in out
    code, _, err = config("show", "kvs")
    assert code == 2 and "sections are redis, model, kv" in err


def test_everything_that_is_wrong_is_said_at_once(config: Pdq, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "cluster.env"
    file.write_text("PDQ_PORT=1\nPDQ_KV__BLOKSIZE=32\n")
    monkeypatch.setenv("PDQ_QUEUE__LEASE_S", "0")
    monkeypatch.setenv("PDQ_KV__BLOCK_SIZE", "17")
    code, out, err = config("check", "--env-file", str(file))
    assert (code, out) == (2, "")
    said = err.splitlines()
    assert len(said) == 4 and all(line.startswith("pdq: ") for line in said)
    assert "pdq: PDQ_PORT is no setting of pdq; the nearest is PDQ_API__PORT" in said
    assert "pdq: PDQ_KV__BLOKSIZE is no setting of pdq; the nearest is PDQ_KV__BLOCK_SIZE" in said
    assert any(line.startswith("pdq: PDQ_QUEUE__LEASE_S = '0': ") for line in said)
    assert any(line.startswith("pdq: PDQ_KV__BLOCK_SIZE = 17: ") for line in said)


def test_contradictions_are_errors_and_doubts_are_not(config: Pdq, monkeypatch: pytest.MonkeyPatch) -> None:
    assert config("check") == (0, "the settings are good\n", "")
    monkeypatch.setenv("PDQ_API__HOST", "0.0.0.0")
    code, out, err = config("check")
    assert (code, out) == (0, "the settings are good, with 1 warning(s)\n") and "pdq: warning: PDQ_API__HOST" in err
    monkeypatch.setenv("PDQ_QUEUE__LOW_SHARE", "1.0")
    code, out, err = config("check")
    assert (code, out) == (2, "") and "pdq: PDQ_QUEUE__LOW_SHARE = 1 is above" in err


def test_a_file_that_is_not_there(config: Pdq, tmp_path: Path) -> None:
    code, _, err = config("check", "--env-file", str(tmp_path / "none"))
    assert code == 2 and "No such file or directory" in err


def test_units_are_in_names() -> None:
    assert [unit_of(knob) for knob in ("lease_s", "max_ms", "pool_bytes", "requests_per_min", "num_blocks")] == [
        *("seconds", "milliseconds", "bytes", "a minute", "")
    ]
