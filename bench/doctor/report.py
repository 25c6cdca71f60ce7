"""The findings as Markdown to paste into an issue, and as a document for machines. Pure."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from bench.doctor.check import Section, Verdict
from bench.machine import Machine
from bench.markdown import markdown_table

FORMAT_VERSION = 1


def summary(sections: Sequence[Section]) -> str:
    """How many findings of each verdict."""
    counts = Counter(finding.verdict for section in sections for finding in section.findings)
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict)


def to_markdown(title: str, machine: Machine, sections: Sequence[Section]) -> str:
    """A heading, the machine, and a table per check; tracebacks and logs folded below."""
    packages = ", ".join(f"{name} {version}" for name, version in machine.packages.items())
    parts = [
        f"## {title}: {summary(sections)}",
        f"{machine.measured_at}, {machine.system}, Python {machine.python}, {packages}; "
        f"{machine.num_cores} cores of {machine.cpu_model}, {machine.memory_bytes / 2**30:.0f} GiB",
    ]
    for section in sections:
        rows = [[str(finding.verdict), finding.subject, finding.said, finding.remedy] for finding in section.findings]
        columns = 4 if any(row[3] for row in rows) else 3
        table = markdown_table(["", "what", "found", "what to do"][:columns], [row[:columns] for row in rows])
        parts += [f"### {section.title} ({section.wall_s:.1f} s)", table]
        for finding in section.findings:
            if finding.detail:
                said = f"<details><summary>{finding.subject}</summary>"
                parts.append(f"{said}\n\n```\n{finding.detail.rstrip()}\n```\n</details>")
    return "\n\n".join(parts)


def to_document(title: str, machine: Machine, sections: Sequence[Section]) -> dict[str, Any]:
    """The same for `--json`, with every figure."""
    document = {"format_version": FORMAT_VERSION, "title": title, "machine": machine, "sections": list(sections)}
    built: dict[str, Any] = msgspec.to_builtins(document)
    return built
