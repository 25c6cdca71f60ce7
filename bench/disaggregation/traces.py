"""Four kinds of traffic that local prefill suits differently, as conversations with arrival times. Pure.

A conversation is one request after the other, each prompt being all that was said before and something new. Arrivals
are a function of (trace, rate, seed), the same for every cluster.
"""

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Trace:
    """Conversations of one shape, which come in bursts of `burst` at the times of a Poisson process."""

    name: str
    new_tokens: int  # of each turn's prompt
    output_tokens: int
    num_turns: int = 1
    pause_s: float = 0.0  # between an answer and the next turn
    burst: int = 1
    load_share: float = 0.6  # of the measured capacity


TRACES = (
    Trace("short chat", 64, 64),
    Trace("long prefill", 1500, 32),
    Trace("multi-turn", 96, 32, num_turns=4, pause_s=0.3),
    Trace("bursty", 64, 32, burst=6),
)


def starts_s(trace: Trace, rate: float, duration_s: float, seed: int) -> list[float]:
    """Seconds after the start at which conversations begin, `rate` of them per second on average."""
    draws = random.Random(f"{seed}/{trace.name}/arrivals")
    starts: list[float] = []
    at_s = 0.0
    while True:
        at_s += draws.expovariate(rate / trace.burst)
        if at_s > duration_s:
            return starts
        starts += [at_s] * trace.burst
