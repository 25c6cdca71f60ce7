"""What the documents name exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = sorted([*ROOT.glob("docs/*.md"), ROOT / "README.md"])


@pytest.mark.parametrize("document", DOCS, ids=lambda path: path.name)
def test_the_tests_that_a_document_names_exist(document: Path) -> None:
    for path, _, name in re.findall(r"(tests/[\w/]+\.py)(::(\w+))?", document.read_text()):
        assert (ROOT / path).exists(), path
        assert not name or f"def {name}(" in (ROOT / path).read_text(), f"{path}::{name}"


def test_every_failure_names_its_test() -> None:
    rows = [line for line in (ROOT / "docs" / "reliability.md").read_text().splitlines() if line.startswith("| ")]
    failures = [row for row in rows if not row.endswith("| shown by |")]
    assert len(failures) > 20
    for row in failures:
        assert "tests/" in row.split("|")[-2], row
