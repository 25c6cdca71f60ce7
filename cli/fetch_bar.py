"""How far the fetching and converting of a model is: a bar on a terminal, lines elsewhere. Knows no model."""

import re
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

_SHARE = re.compile(r"\s*(\d+)\s*%$")


class FetchBar:
    """Give `say` each sentence; one that ends in a percentage moves the bar."""

    def __init__(self, console: Console) -> None:
        self._console = console
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(None), TaskProgressColumn())
        self._progress = Progress(
            *columns, TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal
        )
        self._task = self._progress.add_task("", total=None, visible=False)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._progress.stop()

    def say(self, sentence: str) -> None:
        """What is done at the moment."""
        if not self._console.is_terminal:
            self._console.print(sentence, markup=False, soft_wrap=True)
            return
        share = _SHARE.search(sentence)
        self._progress.update(
            self._task,
            description=_SHARE.sub("", sentence),
            total=100 if share else None,
            completed=int(share[1]) if share else 0,
            visible=True,
        )
