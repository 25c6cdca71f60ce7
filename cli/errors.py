"""How a start that cannot be is told: one sentence on stderr and the error's exit code, never a traceback.

Knows the startup errors of `messages` and nothing else.
"""

import sys
from typing import NoReturn

import typer

from errors import BrokerError, ConfigError, DeviceError, ModelError, StartupError

BY_EXIT_CODE: dict[int, type[StartupError]] = {
    kind.exit_code: kind for kind in (ConfigError, DeviceError, ModelError, BrokerError)
}


def fail(error: StartupError) -> NoReturn:
    """Say `error` and exit with its code."""
    typer.echo(f"pdq: {error}", err=True)
    sys.exit(error.exit_code)


def startup_error(exit_code: int, message: str) -> StartupError:
    """The startup error that a child's `exit_code` (a key of BY_EXIT_CODE) stands for, saying `message`."""
    return BY_EXIT_CODE[exit_code](message)
