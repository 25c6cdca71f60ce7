"""`pdq plan` as it is typed: the table, the sentence, exit codes."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.__main__ import app
from planning.costs import write_costs
from tests.planning.simple_costs import costs_of, per_token


@pytest.fixture
def costs_file(tmp_path: Path) -> str:
    path = tmp_path / "costs.json"
    write_costs(costs_of(per_token(0.001), per_token(0.002)), path)
    return str(path)


def plan(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["plan", *arguments], env={"COLUMNS": "200"})
    return done.exit_code, done.output


def test_a_workload_is_planned(costs_file: str, tmp_path: Path) -> None:
    json_file = tmp_path / "plan.json"
    code, said = plan("--costs", costs_file, "--workload", "w4", "--ttft-slo-ms", "600", "--json", str(json_file))
    assert code == 0, said
    assert "is the smallest with 90% of requests within TTFT 600 ms and TPOT 60 ms" in said
    forecasts = json.loads(json_file.read_text())["forecasts"]
    assert [one["size"]["num_prefill"] + one["size"]["num_decode"] for one in forecasts][0] == 2
    assert any(one["is_enough"] for one in forecasts)


def test_a_trace_is_planned(costs_file: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"arrival_s": 0.5, "prompt_tokens": 50, "output_tokens": 5}\n')
    code, said = plan("--costs", costs_file, "--trace", str(trace))
    assert code == 0 and "trace.jsonl, 1 requests" in said
    assert "1 prefill and 1 decode is the smallest" in said


def test_limits_that_nobody_keeps_are_exit_code_1(costs_file: str) -> None:
    code, said = plan(
        "--costs", costs_file, "--workload", "w1", "--ttft-slo-ms", "1", "--max-prefill", "2", "--max-decode", "1"
    )
    assert code == 1 and "None of these 2" in said and "--max-prefill" in said


def test_what_does_not_fit_is_exit_code_2_and_a_sentence(costs_file: str, tmp_path: Path) -> None:
    for arguments, says in (
        (["--costs", str(tmp_path / "none.json")], "pdq plan measure"),
        (["--costs", costs_file, "--trace", "t", "--workload", "w1"], "--trace"),
        (["--costs", costs_file, "--trace", str(tmp_path / "none.jsonl")], "No such file"),
        (["--costs", costs_file, "--prompt-tokens", "200000"], "200000 + 128 tokens"),
    ):
        code, said = plan(*arguments)
        assert code == 2, said
        assert says in said.replace("\n", " ")
