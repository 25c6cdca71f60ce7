"""`python -m api`: one API process from the environment's settings."""

import sys

import uvloop

from api.server import serve
from errors import StartupError
from settings.loading import load_settings
from telemetry import configure_logging, get_logger


def main() -> int:
    """The exit status."""
    try:
        settings = load_settings()
        configure_logging(settings.log, process="api")
        uvloop.run(serve(settings))
    except StartupError as error:
        get_logger().error("start_failed", reason=str(error))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
