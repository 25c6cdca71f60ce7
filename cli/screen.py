"""What people see of `pdq serve`: sentences, one live line of progress, and what the children write.

On a terminal the progress line moves (rich); elsewhere it is a plain line at most every five seconds. Knows no process.
"""

import sys
import time
from collections.abc import Callable

from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.text import Text

PROGRESS_EVERY_S = 5.0


class Screen:
    """Sentences go to stdout; children's lines go to stderr, unless stdout is a terminal that both share."""

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._clock = clock
        self._status: Status | None = None
        self._last_progress = ""
        self._next_progress = 0.0

    @property
    def is_terminal(self) -> bool:
        """Whether a person is watching."""
        return self._console.is_terminal

    def say(self, sentence: str) -> None:
        """One line that stays."""
        self._console.print(escape(sentence))
        self._console.file.flush()

    def child_line(self, name: str, line: str) -> None:
        """One line that a child wrote."""
        if self.is_terminal:
            self._console.print(Text.assemble((f"{name} ", "dim"), Text.from_ansi(line)))
        else:
            sys.stderr.write(f"{name}: {line}\n")
            sys.stderr.flush()

    def progress(self, text: str) -> None:
        """What is waited for at the moment; call it as often as you like."""
        if self.is_terminal:
            if self._status is None:
                self._status = self._console.status(escape(text))
                self._status.start()
            self._status.update(escape(text))
        elif text != self._last_progress and self._clock() >= self._next_progress:
            self._last_progress, self._next_progress = text, self._clock() + PROGRESS_EVERY_S
            self.say(text)

    def progress_done(self) -> None:
        """Nothing is waited for any more."""
        if self._status is not None:
            self._status.stop()
            self._status = None
        self._next_progress = 0.0
