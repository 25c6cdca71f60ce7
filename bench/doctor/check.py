"""What a check is and how it is run. A check finds things, each ok or not; whatever it raises is a finding too.

Knows no device and no terminal, and loads no torch.
"""

import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import StrEnum

import msgspec

from errors import PdqError


class Verdict(StrEnum):
    """What is thought of a finding."""

    OK = "ok"
    WARN = "warn"  # it works, but not as well as it could, or not for everything
    FAIL = "fail"  # it does not work


class Finding(msgspec.Struct, frozen=True):
    """One line of the report."""

    subject: str
    verdict: Verdict
    said: str  # what was found, with its figures
    remedy: str = ""  # what to do about it
    figures: dict[str, float] = {}  # name with its unit -> value
    detail: str = ""  # a traceback or a log


class Section(msgspec.Struct, frozen=True):
    """What one check found."""

    title: str
    findings: list[Finding]
    wall_s: float


Check = Callable[[], Iterable[Finding]]


def attempt(subject: str, check: Check) -> Iterator[Finding]:
    """What the check finds, and a FAIL with the reason as the last of it when it raises."""
    try:
        yield from check()
    except Exception as error:  # noqa: BLE001  a check is there for the failure that nobody has foreseen
        reason = str(error).strip() or type(error).__name__
        if not isinstance(error, PdqError):  # ours are sentences
            reason = f"{type(error).__name__}: {reason.splitlines()[0]}"
        yield Finding(subject, Verdict.FAIL, reason, detail=traceback.format_exc())


def run_checks(
    checks: Mapping[str, Check], on_start: Callable[[str], None], on_finding: Callable[[Finding], None]
) -> list[Section]:
    """Run every check in order, by title; `on_start` and `on_finding` are told meanwhile."""
    sections = []
    for title, check in checks.items():
        on_start(title)
        began_s = time.monotonic()
        findings = []
        for finding in attempt(title, check):
            findings.append(finding)
            on_finding(finding)
        if not findings:
            findings = [Finding(title, Verdict.FAIL, "the check found nothing at all")]
            on_finding(findings[0])
        sections.append(Section(title, findings, time.monotonic() - began_s))
    return sections


def has_failed(sections: Iterable[Section]) -> bool:
    """Whether anything is a FAIL."""
    return any(finding.verdict is Verdict.FAIL for section in sections for finding in section.findings)
