"""The process that keeps the other cores busy while steps are measured: it computes, and ends with the measurement."""

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from errors import StartupError
from planning.neighbour import busy_neighbour
from tests.tiny_models import tiny_model


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PDQ_MODEL__PATH", str(tiny_model("llama").path))
    monkeypatch.setenv("PDQ_KV__NUM_BLOCKS", "256")
    yield


def neighbours() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "planning.neighbour" in child.cmdline()]


def test_it_computes_until_the_measurement_is_over() -> None:
    with busy_neighbour("decode", 1):
        (process,) = neighbours()
        before_s = process.cpu_times().user
        while process.cpu_times().user - before_s < 0.1:  # pytest's time limit is the bound
            assert process.is_running()
    assert not process.is_running() and neighbours() == []


def test_where_no_cores_are_left_there_is_none() -> None:
    with busy_neighbour("prefill", 0):
        assert neighbours() == []


def test_one_that_cannot_start_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PDQ_MODEL__PATH", str(tmp_path / "none.gguf"))
    with (
        pytest.raises(StartupError, match="a neighbour that computes prefill steps ended with code"),
        busy_neighbour("prefill", 1),
    ):
        raise AssertionError("it must not get here")
