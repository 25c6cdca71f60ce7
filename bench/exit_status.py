"""Errors of ours -> exit status and one sentence on stderr. Knows typer and the error tree, nothing else."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from errors import ConfigError, PdqError, StartupError


@contextmanager
def exit_status() -> Iterator[None]:
    """ConfigError -> usage error (2), other StartupError -> its own status, other PdqError -> 1."""
    try:
        yield
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None
    except PdqError as error:
        Console(stderr=True).print(str(error), style="red", markup=False, soft_wrap=True)
        raise typer.Exit(error.exit_code if isinstance(error, StartupError) else 1) from None
