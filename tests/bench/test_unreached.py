"""Which lines were executed, on a module of a few lines that is imported, called and called in a thread."""

import importlib.util
import threading
from pathlib import Path
from types import ModuleType

from bench.unreached import as_ranges, lines_of, reached

SOURCE = '''"""A module."""

def here(wanted):
    if wanted:
        return [
            one for one in range(3)
        ]
    return None

def in_a_thread():
    done = True
    return done

def never():
    return here(
        False
    )
'''


def imported(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("few_lines", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_lines_that_run_are_reached_and_others_are_not(tmp_path: Path) -> None:
    path, other = tmp_path / "few_lines.py", tmp_path / "other.py"
    path.write_text(SOURCE)
    other.write_text("1\n")

    def run() -> None:
        module = imported(path)
        assert module.here(True) == [0, 1, 2]
        thread = threading.Thread(target=module.in_a_thread)
        thread.start()
        thread.join()

    lines = reached([path, other], run)
    assert lines_of(path) == {1, 3, 4, 5, 6, 8, 10, 11, 12, 14, 15, 16}
    assert lines_of(path) - lines[path] == {8, 15, 16}
    assert lines[other] == set()


def test_neighbours_are_one_range() -> None:
    assert as_ranges({9, 3, 5, 4, 11, 12}) == "3-5, 9, 11-12"
    assert as_ranges(()) == ""
