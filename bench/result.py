"""One run as a JSON document: command line, machine, workload, figures, and the raw times they were computed from.

Pure but for the file it writes. Times of requests are milliseconds: sends since the start, the rest since the send.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from bench.machine import CpuUse, Machine
from bench.record import RequestRecord
from bench.report import Limits, Summary
from bench.workload import Workload
from errors import ConfigError

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Run:
    """What a reader needs to repeat and to judge a run."""

    format_version: int
    label: str
    command: str
    url: str
    style: str
    workload: Workload
    arrival_seed: int
    prompt_seed: int
    num_warmup: int
    limits: Limits
    machine: Machine
    cpu: CpuUse
    summaries: list[Summary]
    requests: list[dict[str, Any]]


def command_line(arguments: Sequence[str]) -> str:
    """The command line as a shell takes it, without an API key."""
    shown = list(arguments)
    for place, argument in enumerate(shown):
        if argument.startswith("--api-key="):
            shown[place] = "--api-key=***"
        elif argument == "--api-key" and place + 1 < len(shown):
            shown[place + 1] = "***"
    return shlex.join(shown)


def raw_times(records: Sequence[RequestRecord], start_s: float) -> list[dict[str, Any]]:
    """Per request: group, index, sizes, failure and times; no prompt and no output."""
    return [
        {
            "group": record.group,
            "index": record.index,
            "prompt_tokens": record.prompt_tokens,
            "asked_tokens": record.asked_tokens,
            "sent_ms": _ms(record.sent_s - start_s),
            "ended_ms": _ms(record.end_s - record.sent_s),
            "arrivals_ms": [_ms(arrival_s - record.sent_s) for arrival_s in record.arrivals_s],
            "failure": record.failure,
        }
        for record in sorted(records, key=lambda record: record.sent_s)
    ]


def write_json(document: object, path: Path) -> None:
    """Writes a dataclass (or a dictionary) as indented JSON. Raises ConfigError when the file cannot be written."""
    data = orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    try:
        path.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"--json {path}: {error.strerror}") from None


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
