"""A progress bar on a terminal, nothing elsewhere. It draws rarely: drawing costs the measured servers' cores too."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

REFRESH_PER_S = 2


class StepBar:
    """While entered, `advance` counts one step."""

    def __init__(self, console: Console, name: str, total: int | None) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            refresh_per_second=REFRESH_PER_S,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(name, total=total)

    def __enter__(self) -> "StepBar":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, _: object = None) -> None:
        """One step more; takes and ignores a record, so that it fits as a callback."""
        self._bar.advance(self._task)
