"""Traces and workloads as the simulation reads them."""

from pathlib import Path

import pytest

from bench.workload import Overrides, arrival_times, build_workload
from errors import ConfigError
from planning.load import Groups, read_trace


def test_a_trace_is_read_in_order_of_arrival(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(
        '{"arrival_s": 2.5, "prompt_tokens": 10, "output_tokens": 3}\n\n'
        '{"arrival_s": 0, "prompt_tokens": 7, "output_tokens": 1}\n'
    )
    trace = read_trace(path)
    for _ in range(2):  # it may be simulated many times
        assert [(one.arrival_s, one.prompt_tokens, one.output_tokens) for one in trace.start()] == [
            (0, 7, 1),
            (2.5, 10, 3),
        ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no request"),
        ('{"arrival_s": 1, "prompt_tokens": 5}', "line 1.*output_tokens"),
        ('{"arrival_s": 1, "prompt_tokens": 5, "output_tokens": 0}', "output_tokens = 0 at least 1"),
        ('{"arrival_s": 1, "prompt_tokens": 5, "output_tokens": 1}\n{', "line 2"),
        ('{"arrival_s": -1, "prompt_tokens": 5, "output_tokens": 1}', "arrival_s = -1 must be at least 0"),
        ('{"arrival_s": 1, "prompt_tokens": 5, "output_tokens": 1, "user": 2}', "user"),
    ],
)
def test_a_trace_that_cannot_be_read_names_the_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says):
        read_trace(path)


def test_a_workload_arrives_as_the_bench_sends_it() -> None:
    (group,) = build_workload("w4", Overrides(request_rate=2.0)).groups
    assert [one.arrival_s for one in Groups((group,), 3).start()] == list(arrival_times(group, 3))


def test_a_closed_loop_goes_on_when_a_request_ends() -> None:
    (group,) = build_workload(None, Overrides(concurrency=2, num_requests=3)).groups
    load = Groups((group,), 0)
    first, second = load.start()
    first.last_token_s = 4.0
    third = load.after(first)
    assert third is not None and third.arrival_s == 4.0
    second.last_token_s = 5.0
    assert load.after(second) is None
