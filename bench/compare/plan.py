"""What is measured of every server: workloads, rates, rounds. Pure."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench.workload import PRESETS, Workload

# From what a slow peer bears to twice what the fastest does; nominal requests per s.
RATES = (0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 5.5, 6, 6.5, 7, 8, 9, 10, 12, 14)
HALF_BILLION_WORKLOADS = ("w1", "w2")
QUICK_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of it."""

    workloads: tuple[Workload, ...]  # in this order; a Poisson one is searched for its highest rate
    rates_rps: tuple[float, ...]
    num_rounds: int
    has_first_starts: bool
    arrival_seed: int
    prompt_seed: int

    def prompt_seed_of(self, workload: str, number: int, round_: int) -> int:
        """Equal for all servers, and another for every attempt: no prefix cache answers from the one before."""
        return self.prompt_seed + zlib.crc32(f"{workload}/{number}/{round_}".encode())


def chosen(names: Sequence[str], is_quick: bool) -> tuple[Workload, ...]:
    """The presets of these names, or a fifth of each."""
    workloads = tuple(PRESETS[name] for name in names)
    return tuple(_shortened(workload) for workload in workloads) if is_quick else workloads


def _shortened(workload: Workload) -> Workload:
    groups = []
    for group in workload.groups:
        number, duration_s = group.num_requests, group.duration_s
        groups.append(
            replace(
                group,
                num_requests=None if number is None else max(2, round(number * QUICK_SHARE)),
                duration_s=None if duration_s is None else max(4.0, duration_s * QUICK_SHARE),
            )
        )
    return Workload(workload.name, tuple(groups))
