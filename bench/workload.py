"""What is asked of a server: groups of equal requests and how each group arrives. W1..W4 are presets.

Pure: no clock, no sockets. Arrival times are a function of (rate, seed), the same for every server that is measured.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from itertools import count

from errors import ConfigError


@dataclass(frozen=True, slots=True)
class Concurrency:
    """Closed loop: so many requests in flight, a new one when one ends."""

    num_streams: int


@dataclass(frozen=True, slots=True)
class Poisson:
    """Open loop: arrivals with exponential gaps, whatever the answers do."""

    rate_rps: float  # mean requests per second


@dataclass(frozen=True, slots=True)
class Periodic:
    """Open loop: one request every `interval_s`, the first after half of it."""

    interval_s: float


Arrivals = Concurrency | Poisson | Periodic


@dataclass(frozen=True, slots=True)
class Group:
    """Requests of one shape. It ends at `num_requests` or `duration_s`, whichever is set and comes first."""

    name: str
    arrivals: Arrivals
    prompt_tokens: int
    output_tokens: int
    num_requests: int | None = None
    duration_s: float | None = None  # no request starts later; open ones are finished
    shared_prefix_tokens: int = 0  # of the prompt, equal in all requests of the group


@dataclass(frozen=True, slots=True)
class Workload:
    """Groups that run at the same time."""

    name: str
    groups: tuple[Group, ...]


@dataclass(frozen=True, slots=True)
class Overrides:
    """What the command line asks for beside the preset; None leaves the preset's value."""

    concurrency: int | None = None
    request_rate: float | None = None
    num_requests: int | None = None
    duration_s: float | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    shared_prefix_tokens: int | None = None


PRESETS = {
    "w1": Workload("w1", (Group("all", Concurrency(1), 128, 128, num_requests=8),)),
    "w2": Workload("w2", (Group("all", Concurrency(16), 128, 128, num_requests=48),)),
    "w3": Workload(
        "w3",
        (
            Group("steady", Concurrency(4), 64, 256, duration_s=40.0),
            Group("long", Periodic(2.0), 1500, 8, duration_s=40.0),
        ),
    ),
    "w4": Workload("w4", (Group("all", Poisson(4.0), 256, 64, duration_s=25.0),)),
}
DEFAULT = Workload("custom", (Group("all", Concurrency(1), 128, 128, num_requests=16),))


def build_workload(preset: str | None, overrides: Overrides) -> Workload:
    """The preset (or the default) with `overrides` applied. Raises ConfigError on options that do not fit."""
    if overrides.concurrency is not None and overrides.request_rate is not None:
        raise ConfigError("--concurrency is a closed loop, --request-rate an open one: give one of them")
    workload = DEFAULT if preset is None else PRESETS[preset]
    if len(workload.groups) > 1:
        given = [field.name for field in fields(overrides) if getattr(overrides, field.name) is not None]
        for name in given:
            if name != "duration_s":
                option = name.replace("_", "-")
                raise ConfigError(f"--workload {preset} has several groups; --{option} fits only one")
    groups = tuple(_with_overrides(group, overrides) for group in workload.groups)
    for group in groups:
        if group.shared_prefix_tokens >= group.prompt_tokens:
            raise ConfigError(
                f"--shared-prefix-tokens {group.shared_prefix_tokens}: must be less than the prompt's "
                f"{group.prompt_tokens} tokens, so that requests stay distinct"
            )
    return Workload(workload.name, groups)


def _with_overrides(group: Group, overrides: Overrides) -> Group:
    if overrides.concurrency is not None:
        group = replace(group, arrivals=Concurrency(overrides.concurrency))
    if overrides.request_rate is not None:
        group = replace(group, arrivals=Poisson(overrides.request_rate))
    if overrides.num_requests is not None or overrides.duration_s is not None:
        # A limit that is given takes the place of the preset's limits.
        group = replace(group, num_requests=overrides.num_requests, duration_s=overrides.duration_s)
    if overrides.prompt_tokens is not None:
        group = replace(group, prompt_tokens=overrides.prompt_tokens)
    if overrides.output_tokens is not None:
        group = replace(group, output_tokens=overrides.output_tokens)
    if overrides.shared_prefix_tokens is not None:
        group = replace(group, shared_prefix_tokens=overrides.shared_prefix_tokens)
    return group


def arrival_times(group: Group, seed: int) -> Iterator[float]:
    """Seconds after the start at which an open-loop group's requests are sent, ascending, within its limits."""
    numbers = count() if group.num_requests is None else range(group.num_requests)
    draws = random.Random(f"{seed}/{group.name}/arrivals")
    time_s = 0.0
    for number in numbers:
        match group.arrivals:
            case Poisson(rate_rps):
                time_s += draws.expovariate(rate_rps)
            case Periodic(interval_s):
                time_s = (number + 0.5) * interval_s
            case Concurrency():
                raise AssertionError("a closed loop has no arrival times")
        if group.duration_s is not None and time_s > group.duration_s:
            return
        yield time_s


def warmup_of(workload: Workload, num_requests: int) -> Workload:
    """The first group's shape under another name, hence with other prompts, at no more than its concurrency."""
    group = workload.groups[0]
    num_streams = group.arrivals.num_streams if isinstance(group.arrivals, Concurrency) else 1
    arrivals = Concurrency(min(num_streams, num_requests))
    warmup = Group("warm-up", arrivals, group.prompt_tokens, group.output_tokens, num_requests)
    return Workload("warm-up", (warmup,))
