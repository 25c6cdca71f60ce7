"""How checks are run and reported, on checks that are planted: one raises, one dies, one hangs."""

import fcntl
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from bench.doctor.check import Check, Finding, Section, Verdict, has_failed, run_checks
from bench.doctor.child import findings_of
from bench.doctor.report import to_document, to_markdown
from bench.machine import read_machine
from errors import DeviceError

GOOD = Finding("good", Verdict.OK, "1 of 1", figures={"share": 1.0})


def good() -> Iterator[Finding]:
    yield GOOD


def raising() -> Iterator[Finding]:
    yield GOOD
    raise ZeroDivisionError("the first line\nthe second")


def refusing() -> Iterator[Finding]:
    raise DeviceError("no memory is left")
    yield GOOD


def run(checks: dict[str, Check]) -> tuple[list[Section], list[object]]:
    told: list[object] = []
    return run_checks(checks, told.append, told.append), told


def test_a_check_that_raises_is_a_failure_and_the_rest_goes_on() -> None:
    sections, told = run({"first": raising, "second": refusing, "third": lambda: [], "last": good})
    assert [section.title for section in sections] == ["first", "second", "third", "last"]
    assert sections[0].findings[0] == GOOD, "what it found before stays"
    failures = [section.findings[-1] for section in sections[:3]]
    assert [(failure.verdict, failure.said) for failure in failures] == [
        (Verdict.FAIL, "ZeroDivisionError: the first line"),
        (Verdict.FAIL, "no memory is left"),
        (Verdict.FAIL, "the check found nothing at all"),
    ]
    assert "in raising" in failures[0].detail
    assert sections[3].findings == [GOOD]
    assert told == ["first", GOOD, failures[0], "second", failures[1], "third", failures[2], "last", GOOD]


def test_only_a_failure_fails() -> None:
    sections, _ = run({"good": good})
    assert not has_failed(sections)
    assert not has_failed([Section("warned", [Finding("one", Verdict.WARN, "slow")], 0.1)])
    assert has_failed([*sections, *run({"bad": refusing})[0]])


def child(script: str, time_limit_s: float = 60.0) -> list[Finding]:
    said = msgspec.json.encode(GOOD).decode()
    program = f"import os, sys, time\nsaid = {said!r}\nprint(said, flush=True)\n{script}"
    return list(findings_of([sys.executable, "-c", program], "planted", time_limit_s))


def test_a_child_that_ends_well() -> None:
    assert child("print(said)") == [GOOD, GOOD]


@pytest.mark.parametrize(
    ("script", "time_limit_s", "said", "log"),
    [
        ("os.kill(os.getpid(), 11)", 60.0, "ended by SIGSEGV", ""),
        ("raise ValueError('oh')", 60.0, "ended with code 1", "ValueError: oh"),
        ("sys.stderr.write('waiting for ever')\nsys.stderr.flush()\ntime.sleep(600)", 1.0, "within 1 s", "for ever"),
    ],
    ids=["dies", "raises", "hangs"],
)
def test_a_child_that_does_not(script: str, time_limit_s: float, said: str, log: str) -> None:
    found, failure = child(script, time_limit_s)
    assert found == GOOD, "what it found before stays"
    assert failure.verdict is Verdict.FAIL and said in failure.said and log in failure.detail


def test_a_childs_children_end_with_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder = f"import fcntl, time; f = open({str(path)!r}, 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); "
    holder += "time.sleep(600)"
    script = f"import subprocess\nPIPE = subprocess.PIPE\nholder = [sys.executable, '-c', {holder!r}]"
    assert child(f"{script}\nsubprocess.Popen(holder, stdout=PIPE).stdout.readline()") == [GOOD]
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # returns when nobody holds it any more


def test_a_child_compiles_its_kernels() -> None:
    assert os.environ["TRITON_INTERPRET"] == "1"
    assert child("assert 'TRITON_INTERPRET' not in os.environ") == [GOOD]


def test_the_report_has_every_finding() -> None:
    sections, _ = run({"first | second": raising, "last": good})
    text = to_markdown("a title", read_machine(), sections)
    assert text.startswith("## a title: 2 ok, 0 warn, 1 fail\n")
    assert f"{read_machine().num_cores} cores of" in text
    assert "### first | second (" in text and "### last (" in text
    assert (
        text.count("| ok   | good") == 1 and "| fail | first \\| second | ZeroDivisionError: the first line |" in text
    )
    assert "<summary>first | second</summary>" in text and "ZeroDivisionError: the first line\nthe second" in text


def test_the_document_has_every_figure() -> None:
    sections, _ = run({"good": good})
    document = json.loads(json.dumps(to_document("a title", read_machine(), sections)))
    assert document["format_version"] == 1 and document["machine"]["num_cores"] >= 1
    (section,) = document["sections"]
    (finding,) = section["findings"]
    assert (section["title"], finding["verdict"], finding["figures"]) == ("good", "ok", {"share": 1.0})
