"""What is being done at the moment: a moving line on a terminal, elsewhere nothing. It draws rarely."""

import time
from types import TracebackType

from rich.console import Console
from rich.markup import escape

DRAW_EVERY_S = 0.2


class Progress:
    """While entered, `begin` says what goes on and `count` that one request more has ended in it."""

    def __init__(self, console: Console) -> None:
        self._status = console.status("")
        self._is_shown = console.is_terminal
        self._text, self._num, self._drawn_s = "", 0, 0.0

    def __enter__(self) -> "Progress":
        if self._is_shown:
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._is_shown:
            self._status.stop()

    def begin(self, text: str) -> None:
        """Something else from now on."""
        self._text, self._num = text, 0
        self._status.update(escape(text))

    def count(self, _: object = None) -> None:
        """One more; takes and ignores a request, so that it fits as a callback."""
        self._num += 1
        if time.monotonic() - self._drawn_s >= DRAW_EVERY_S:
            self._drawn_s = time.monotonic()
            self._status.update(escape(f"{self._text}: {self._num} requests"))
