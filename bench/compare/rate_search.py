"""The highest Poisson rate that a server bears: which to try next. Pure.

A rate is borne when enough requests of its one run met the limits. Real rates are compared, not nominal ones: in 25 s
a nominal 4/s may come out heavier than a nominal 5/s.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from bench.workload import Group, Poisson, arrival_times

WANTED_ATTAINMENT = 0.9


def real_rate(group: Group, seed: int) -> float:
    """Requests per second of the window that this seed really sends."""
    assert group.duration_s is not None
    return sum(1 for _ in arrival_times(group, seed)) / group.duration_s


def ladder(group: Group, nominal_rps: Sequence[float], seed: int) -> list[Group]:
    """A group per rate, by rising real rate; of equal ones, one."""
    groups = [replace(group, arrivals=Poisson(rate)) for rate in nominal_rps]
    by_rate = {real_rate(one, seed): one for one in groups}
    return [by_rate[rate] for rate in sorted(by_rate)]


def first_rung(real_rps: Sequence[float], guess_rps: float | None) -> int:
    """Where to begin: the highest rate below the guess, or the middle."""
    if guess_rps is None:
        return len(real_rps) // 2
    return max((index for index, rate in enumerate(real_rps) if rate <= guess_rps), default=0)


def next_rung(num_rungs: int, borne: Mapping[int, bool], first: int) -> int | None:
    """The rung to try, given what came of others; None when a borne one has a failed one, or nothing, above it."""
    if not borne:
        return first
    highest = max((rung for rung, is_borne in borne.items() if is_borne), default=-1)
    # A failure below a success is the machine's noise, not the server's limit.
    lowest = min((rung for rung, is_borne in borne.items() if not is_borne and rung > highest), default=num_rungs)
    candidate = lowest - 1 if highest < 0 else highest + 1
    return candidate if highest < candidate < lowest and 0 <= candidate < num_rungs else None
