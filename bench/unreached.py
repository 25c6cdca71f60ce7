"""`python -m bench.unreached FILE... -- PYTEST_ARGUMENT...`: the lines of some files that these tests never execute.

What only a GPU can execute is to stay a short list; here it is made. Counts what runs in pytest's own process, threads
included, and not what its children run. Every call in the process is looked at, so tests take a few times as long.
"""

import argparse
import sys
import threading
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest


def lines_of(path: Path) -> set[int]:
    """Numbers of the lines that Python can execute."""
    found: set[int] = set()
    waiting = [compile(path.read_text(), str(path), "exec")]
    while waiting:
        code = waiting.pop()
        found.update(line for _, _, line in code.co_lines() if line)
        waiting += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return found


def reached(paths: Collection[Path], run: Callable[[], object]) -> dict[Path, set[int]]:
    """The lines of each path that `run` executes; the files must not be imported yet."""
    lines: dict[Path, set[int]] = {path.resolve(): set() for path in paths}
    by_name = {str(path): found for path, found in lines.items()}

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        found = by_name.get(frame.f_code.co_filename)
        if found is None:
            return None  # no line of this call is looked at

        def trace_line(inner: FrameType, event: str, argument: Any) -> Any:
            found.add(inner.f_lineno)
            return trace_line

        return trace_line(frame, event, argument)

    threading.settrace(trace)
    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(None)
        threading.settrace(None)
    return lines


def as_ranges(numbers: Collection[int]) -> str:
    """`3-5, 9`."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line per file: how many lines were not reached, of how many, and which. Exit with pytest's code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    end = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+", help="then --, then what pytest is given")
    files = parser.parse_args(given[:end]).files
    codes: list[int] = []

    def run_tests() -> None:
        codes.append(int(pytest.main(["-q", "-n0", *given[end + 1 :]])))

    for path, lines in reached(files, run_tests).items():
        every = lines_of(path)
        missed = every - lines
        where = f": {as_ranges(missed)}" if missed else ""
        print(f"{len(missed):4} of {len(every):4}  {path.relative_to(Path.cwd())}{where}")
    sys.exit(codes[0])


if __name__ == "__main__":
    main()
