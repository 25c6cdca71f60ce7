"""What a comparison has measured, as one JSON document that its table can be made from again."""

from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from bench.machine import CpuUse, Machine
from bench.report import Limits, Summary
from errors import ConfigError

FORMAT_VERSION = 1
DEMO, HALF_BILLION = "demo", "0.5B"


@dataclass(frozen=True, slots=True)
class Column:
    """A server with a model."""

    server: str
    model: str
    weights: str
    is_peer: bool
    command: str
    environment: dict[str, str]
    versions: dict[str, str]


@dataclass(frozen=True, slots=True)
class Start:
    """From the start of the process to the end of the first request that succeeded, a token of 8."""

    server: str
    model: str
    is_first: bool  # the caches of compiled code were empty
    ready_s: float


@dataclass(frozen=True, slots=True)
class Words:
    """What a server said to a question, to be read by a person: is that this model?"""

    server: str
    model: str
    text: str


@dataclass(frozen=True, slots=True)
class Memory:
    """The most that was seen in one round."""

    server: str
    model: str
    pss_bytes: int
    rss_bytes: int


@dataclass(frozen=True, slots=True)
class Attempt:
    """One workload on one server, once."""

    server: str
    model: str
    workload: str
    round: int
    nominal_rps: float | None  # w4: the rate that was asked for
    summaries: list[Summary]
    cpu: CpuUse

    def group(self, name: str) -> Summary | None:
        """The figures of a group."""
        return next((summary for summary in self.summaries if summary.group == name), None)


@dataclass(slots=True)
class Document:
    """A whole run; lists grow while it goes on."""

    format_version: int
    command: str
    machine: Machine
    limits: Limits
    arrival_seed: int
    prompt_seed: int
    columns: list[Column] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)
    words: list[Words] = field(default_factory=list)
    memories: list[Memory] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    took_s: float = 0.0


def write(document: Document, path: Path) -> None:
    """Raises ConfigError when the file cannot be written."""
    data = msgspec.json.format(msgspec.json.encode(document), indent=1)
    try:
        path.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"--json {path}: {error.strerror}") from None


def read(path: Path) -> Document:
    """Raises ConfigError when it is no such file."""
    try:
        document = msgspec.json.decode(path.read_bytes(), type=Document)
    except OSError as error:
        raise ConfigError(f"--from {path}: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise ConfigError(f"--from {path}: {error}") from None
    if document.format_version != FORMAT_VERSION:
        raise ConfigError(f"--from {path}: format {document.format_version}, this is format {FORMAT_VERSION}")
    return document
