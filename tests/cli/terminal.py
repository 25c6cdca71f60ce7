"""A command of pdq on a terminal of its own: what it shows, and keys that are pressed."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from cli.child import ROOT

CTRL_C, CTRL_D = "\x03", "\x04"
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# A session's leader without a terminal makes this one its own: only so does Ctrl-C become SIGINT.
_OWN_IT = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execv(sys.executable, [sys.executable, '-m', 'cli', *sys.argv[1:]])"
)


class Terminal:
    """The person's side."""

    def __init__(self, master: int, process: "subprocess.Popen[bytes]") -> None:
        self._master, self.process = master, process
        self.raw = ""

    @property
    def text(self) -> str:
        """Everything that was shown, without colours and movements."""
        return _ESCAPE.sub("", self.raw)

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def wait_for(self, words: str, deadline_s: float = 30.0) -> str:
        """Everything from here on up to where `words` are shown; what was shown before is forgotten."""
        give_up = time.monotonic() + deadline_s
        while words not in self.text:
            assert time.monotonic() < give_up, f"no {words!r} in {self.text[-2000:]!r}"
            assert self._read(0.2) or self.process.poll() is None, f"ended without {words!r}: {self.text[-2000:]!r}"
        before, _, after = self.text.partition(words)
        self.raw = after
        return before + words

    def wait_end(self, deadline_s: float = 30.0) -> int:
        """The exit code; `raw` has what was shown to the very end."""
        give_up = time.monotonic() + deadline_s
        while self._read(0.2) or self.process.poll() is None:
            assert time.monotonic() < give_up, f"does not end: {self.text[-2000:]!r}"
        return self.process.wait()

    def _read(self, wait_s: float) -> bool:
        if not select.select([self._master], [], [], wait_s)[0]:
            return False
        try:
            data = os.read(self._master, 1 << 16)
        except OSError:  # the last who held the other end is gone
            return False
        self.raw += data.decode(errors="replace")
        return bool(data)


@contextmanager
def terminal(
    *arguments: str, columns: int = 80, rows: int = 24, environment: Mapping[str, str] | None = None
) -> Iterator[Terminal]:
    """`pdq ARGUMENTS` on a terminal of this size; it is gone on exit."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-c", _OWN_IT, *arguments],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=ROOT,
        env=inherited | {"TERM": "xterm-256color"} | dict(environment or {}),
        start_new_session=True,
    )
    os.close(slave)
    try:
        yield Terminal(master, process)
    finally:
        process.kill()
        process.wait()
        os.close(master)
