"""Where a peer is installed and how: a directory, a virtual environment in it, commands whose output is a log there.

Knows pip and subprocesses; knows no peer. Nothing is installed but by `python -m bench.peers install`.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from errors import PdqError

Report = Callable[[str], None]

LOG_NAME = "install.log"
STAMP_NAME = "installed.json"
STILL_AT_IT_S = 15.0


class PeerFailed(PdqError):
    """A peer cannot be installed, or does not start."""


class Workshop:
    """The directory of one peer."""

    def __init__(self, folder: Path, report: Report) -> None:
        self.folder = folder
        self._report = report

    @property
    def python(self) -> Path:
        """The interpreter of the peer's own environment."""
        return self.folder / "venv" / "bin" / "python"

    def say(self, what: str) -> None:
        """A line for whoever waits."""
        self._report(f"{self.folder.name}: {what}")

    def make_venv(self) -> None:
        """The environment, if it is not there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.python.exists():
            self.run("making its environment", sys.executable, "-m", "venv", str(self.folder / "venv"))

    def pip(self, what: str, *arguments: str) -> None:
        """`pip ARGUMENTS` in the peer's environment."""
        self.run(what, str(self.python), "-m", "pip", "--disable-pip-version-check", *arguments)

    def run(self, what: str, *command: str, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> None:
        """Run it to its end, saying every now and then that it goes on. Raises PeerFailed with the log's end."""
        self.say(what)
        log = self.folder / LOG_NAME
        began = time.monotonic()
        with log.open("ab") as file:
            file.write(f"$ {' '.join(command)}\n".encode())
            file.flush()
            child = subprocess.Popen(
                command, cwd=cwd or self.folder, env=os.environ | (env or {}), stdout=file, stderr=subprocess.STDOUT
            )
            try:
                while True:
                    try:
                        code = child.wait(STILL_AT_IT_S)
                        break
                    except subprocess.TimeoutExpired:
                        self.say(f"{what}, {time.monotonic() - began:.0f} s")
            except BaseException:
                child.kill()
                child.wait()
                raise
        if code:
            lines = log.read_text(errors="replace").splitlines()[-8:]
            raise PeerFailed(
                f"{self.folder.name}: {what} failed with code {code}; {log} ends with\n" + "\n".join(lines)
            )

    def stamp(self, recipe: Sequence[str]) -> None:
        """Note that this recipe is what is installed."""
        (self.folder / STAMP_NAME).write_text(json.dumps(list(recipe)))

    def is_stamped(self, recipe: Sequence[str]) -> bool:
        """Whether this very recipe was installed."""
        stamp = self.folder / STAMP_NAME
        return stamp.exists() and bool(json.loads(stamp.read_text()) == list(recipe))
