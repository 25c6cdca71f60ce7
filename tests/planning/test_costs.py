"""Between measured points, and files that say what cannot be."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from errors import ConfigError
from planning.costs import LEAST_S, Cost, Point, Surface, read_costs, write_costs
from tests.planning.simple_costs import costs_of, flat, per_token


def test_points_are_met_and_between_them_it_is_linear() -> None:
    surface = Surface([Point(0, size, context, size + context / 100) for size in (1, 8) for context in (0, 100, 300)])
    assert surface.at(8, 300).seconds(0) == pytest.approx(11.0)
    assert surface.at(4, 50).seconds(0) == pytest.approx(4.5)
    assert surface.at(16, 500).seconds(0) == pytest.approx(21.0)  # drawn out


def test_a_batch_that_was_measured_at_one_context_grows_with_it_as_smaller_ones_do() -> None:
    """Large batches are not measured at long contexts, for want of memory: 3 sequences read 3 times as much."""
    surface = Surface([Point(0, 1, 0, 1.0), Point(0, 1, 100, 2.0), Point(0, 3, 0, 3.0)])
    assert surface.at(3, 100).seconds(0) == pytest.approx(6.0)
    assert surface.at(2, 100).seconds(0) == pytest.approx(4.0)


def test_no_step_is_free() -> None:
    surface = Surface([Point(0, 10, 0, 1.0), Point(0, 20, 0, 3.0)])
    assert surface.at(1, 0).seconds(0) == LEAST_S


@given(st.floats(0.1, 20), st.floats(0.1, 20))
def test_more_threads_are_never_slower(one: float, other: float) -> None:
    cost = Cost([1, 2, 4], [4.0, 2.2, 1.4])
    fewer, more = sorted((one, other))
    assert cost.seconds(fewer) >= cost.seconds(more) - 1e-9
    assert cost.seconds(2) == 2.2 and cost.seconds(0.5) == pytest.approx(8.0)


def test_a_file_comes_back_as_it_was(tmp_path: Path) -> None:
    costs = costs_of(per_token(0.1), flat(0.2))
    write_costs(costs, tmp_path / "costs.json")
    assert read_costs(tmp_path / "costs.json") == costs


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format_version": 7}, "format_version 7"),
        ({"token_budget": 0}, "token_budget = 0"),
        ({"prefill": []}, "prefill has no points"),
        ({"decode": [{"threads": 0, "size": 1, "context": 0, "seconds": 0}]}, "seconds must be above 0"),
        ({"cores": 2}, "threads = 0 where cores = 2"),
        ({"way": {"handoff_s": -1}}, "way.handoff_s = -1"),
        ({"way": {"shared_stretch": 0.5}}, "shared_stretch = 0.5"),
        ({"colour": 1}, "colour"),
    ],
)
def test_a_file_that_says_what_cannot_be_is_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    path = tmp_path / "costs.json"
    path.write_text(json.dumps(msgspec.to_builtins(costs_of(per_token(0.1), flat(0.2))) | changes))
    with pytest.raises(ConfigError, match=says):
        read_costs(path)


def test_a_file_that_is_not_there_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pdq plan measure"):
        read_costs(tmp_path / "none.json")
