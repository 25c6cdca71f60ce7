"""What is asked of the simulated cluster: a trace from a file, or a bench workload with the bench's own arrivals.

Pure but for the file. A closed loop sends its next request when one ends, so a load is asked again at each end.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Protocol

import msgspec

from bench.workload import Concurrency, Group, arrival_times
from errors import ConfigError


@dataclass(slots=True, eq=False)
class Request:
    """One request, and what became of it. Compared by identity."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    group: str = ""
    num_output: int = 0  # tokens so far
    first_token_s: float = math.inf
    last_token_s: float = math.inf

    @property
    def num_tokens(self) -> int:
        """Prompt and output so far."""
        return self.prompt_tokens + self.num_output

    @property
    def is_done(self) -> bool:
        """Whether its last token was made."""
        return self.num_output >= self.output_tokens

    @property
    def ttft_s(self) -> float:
        """From its arrival to its first token."""
        return self.first_token_s - self.arrival_s

    @property
    def tpot_s(self) -> float | None:
        """Seconds per token after the first; None where there is one token only."""
        if self.output_tokens < 2:
            return None
        return (self.last_token_s - self.first_token_s) / (self.output_tokens - 1)


class Load(Protocol):
    """Requests in the order in which they come."""

    def start(self) -> Iterator[Request]:
        """Those that come whatever is answered, by ascending arrival."""

    def after(self, ended: Request) -> Request | None:
        """The one that is sent because `ended` has ended, if any."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests at fixed times."""

    requests: tuple[tuple[float, int, int], ...]  # (arrival_s, prompt_tokens, output_tokens), by ascending arrival

    def start(self) -> Iterator[Request]:
        """Anew each time."""
        return (Request(*request) for request in self.requests)

    def after(self, ended: Request) -> Request | None:
        """None: nobody waits for anybody."""
        return None


@dataclass(slots=True)
class Groups:
    """The groups of a bench workload; of one simulation, as closed loops count."""

    groups: Sequence[Group]
    seed: int
    _numbers: dict[str, Iterator[int]] = field(default_factory=dict)

    def start(self) -> Iterator[Request]:
        """Open loops whole, and the first request of each stream of the closed ones."""
        requests: list[Request] = []
        for group in self.groups:
            if isinstance(group.arrivals, Concurrency):
                numbers = count() if group.num_requests is None else iter(range(group.num_requests))
                self._numbers[group.name] = numbers
                requests += [
                    _request_of(group, 0.0)
                    for _ in range(group.arrivals.num_streams)
                    if next(numbers, None) is not None
                ]
            else:
                requests += [_request_of(group, time_s) for time_s in arrival_times(group, self.seed)]
        return iter(sorted(requests, key=lambda request: request.arrival_s))

    def after(self, ended: Request) -> Request | None:
        """The stream's next one, at once."""
        group = next(group for group in self.groups if group.name == ended.group)
        if not isinstance(group.arrivals, Concurrency):
            return None
        if group.duration_s is not None and ended.last_token_s >= group.duration_s:
            return None
        return None if next(self._numbers[group.name], None) is None else _request_of(group, ended.last_token_s)


def _request_of(group: Group, arrival_s: float) -> Request:
    return Request(arrival_s, group.prompt_tokens, group.output_tokens, group.name)


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    arrival_s: float
    prompt_tokens: int
    output_tokens: int


def read_trace(path: Path) -> Trace:
    """A file of one JSON object a line: arrival_s, prompt_tokens, output_tokens. Raises ConfigError with the line."""
    decoder = msgspec.json.Decoder(_Line)
    requests: list[tuple[float, int, int]] = []
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                one = decoder.decode(line)
                if not 0 <= one.arrival_s < math.inf or one.prompt_tokens < 1 or one.output_tokens < 1:
                    raise ConfigError(
                        f"--trace {path}, line {number}: arrival_s = {one.arrival_s:g} must be at least 0, "
                        f"prompt_tokens = {one.prompt_tokens} and output_tokens = {one.output_tokens} at least 1"
                    )
                requests.append((one.arrival_s, one.prompt_tokens, one.output_tokens))
    except OSError as error:
        raise ConfigError(f"--trace {path}: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise ConfigError(f"--trace {path}, line {number}: {error}") from None
    if not requests:
        raise ConfigError(f"--trace {path}: holds no request")
    return Trace(tuple(sorted(requests)))
