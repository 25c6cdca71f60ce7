"""That the image gets every module the code imports: .dockerignore names what goes in, and nothing else does."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_what_is_installed_is_in_the_image() -> None:
    said = tomllib.loads((ROOT / "pyproject.toml").read_text())
    installed = said["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines and set(installed) <= {line.removeprefix("!") for line in lines if line.startswith("!")}


def test_every_module_at_the_root_is_installed() -> None:
    said = tomllib.loads((ROOT / "pyproject.toml").read_text())
    installed = said["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    assert {path.name for path in ROOT.glob("*.py")} <= set(installed)
