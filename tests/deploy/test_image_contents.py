"""That the image gets every module the code imports: .dockerignore names what goes in, and nothing else does."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_what_is_installed_is_in_the_image() -> None:
    said = tomllib.loads((ROOT / "pyproject.toml").read_text())
    installed = said["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines and set(installed) <= {line.removeprefix("!") for line in lines if line.startswith("!")}


def test_nothing_of_the_page_is_kept_out() -> None:
    kept_out = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] not in "#!*"]
    kept_out += [line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()]  # which the wheel follows
    files = [path.relative_to(ROOT) for path in (ROOT / "api" / "page").iterdir()]
    assert {path.suffix for path in files} == {".html", ".css", ".js", ".svg"}
    for path in files:
        assert not any(each.match(pattern) for each in (path, *path.parents) for pattern in kept_out), path


def test_every_module_at_the_root_is_installed() -> None:
    said = tomllib.loads((ROOT / "pyproject.toml").read_text())
    installed = said["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    assert {path.name for path in ROOT.glob("*.py")} <= set(installed)
