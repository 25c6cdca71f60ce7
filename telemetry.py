"""What is measured and logged: one logging set-up for every process.

Log lines are an event word and fields (`kv_pulled request_id=... blocks=63 ms=1.8`). Prompts, outputs and secrets
are never logged. This file knows the settings and nothing else of ours.
"""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from settings.observability import LogSettings

Logger = structlog.stdlib.BoundLogger


def configure_logging(settings: LogSettings, **fields: str) -> None:
    """Send structlog's and the standard library's lines to stderr in one form; `fields` stand on every line."""
    console = settings.format == "console" or (settings.format == "auto" and sys.stderr.isatty())
    level = getattr(logging, settings.level.upper())
    structlog.contextvars.bind_contextvars(**fields)

    def add_fields(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        # Threads start with an empty context, so the process-wide fields are added here and not by contextvars alone.
        for name, value in fields.items():
            event.setdefault(name, value)
        return event

    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        add_fields,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: Any = structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)


def get_logger() -> Logger:
    """The logger every room uses."""
    logger: Logger = structlog.get_logger()
    return logger
