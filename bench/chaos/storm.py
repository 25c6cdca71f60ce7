"""Many streams, many kills: processes die at random moments, and every client must hear its story whole.

Knows the cluster, the clients and chance; prints nothing.
"""

import asyncio
import random
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from bench.chaos.cluster import LEASE_S, ROLES, Census, ChaosCluster, Member
from bench.chaos.story import Difference, Telling, Token, compare, listen, stories

NUM_MEMBERS = 2  # of each role
STEP_S = 0.03  # a decode step's length: a stream of 64 tokens lasts two seconds and more
EMPTY_S = 0.2  # how long a killed process's place stays empty: a supervisor's first delay
KILL_EVERY_S = 0.5  # on average
GAP_LIMIT_S = LEASE_S + 1.0
CLEAN_WITHIN_S = 3.0


@dataclass(slots=True)
class StormResult:
    """What came of it."""

    num_streams: int
    kills: Counter[str] = field(default_factory=Counter)  # by role
    difference: Difference = field(default_factory=Difference)
    failures: list[str] = field(default_factory=list)
    num_reconnects: int = 0
    gaps_s: list[float] = field(default_factory=list)
    undisturbed_gaps_s: list[float] = field(default_factory=list)
    census: Census | None = None

    @property
    def gap_p99_s(self) -> float:
        """Of the longest gap of each stream."""
        return percentile(self.gaps_s, 99)

    @property
    def is_passed(self) -> bool:
        """Every stream whole, no gap too long, nothing left."""
        is_clean = self.census is not None and self.census.is_clean
        return not self.failures and self.difference == Difference() and self.gap_p99_s <= GAP_LIMIT_S and is_clean


def percentile(values: list[float], percent: int) -> float:
    """The value that `percent` of them do not exceed; 0 of none."""
    if len(values) < 2:
        return max(values, default=0.0)
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


async def learn_truth(cluster: ChaosCluster) -> tuple[list[list[Token]], list[float]]:
    """Every story as it is told when nothing happens, and the longest gap of each. Raises ValueError if one fails."""
    tellings = [Telling() for _ in stories()]
    async with asyncio.TaskGroup() as tasks:
        for number, (story, telling) in enumerate(zip(stories(), tellings, strict=True)):
            tasks.create_task(listen(story, f"truth-{number}", cluster.addresses(), telling))
    for telling in tellings:
        if telling.failure or telling.tokens[-1].finish_reason != "length":
            raise ValueError(f"an undisturbed stream failed: {telling.failure or telling.tokens[-1]}")
    return [telling.tokens for telling in tellings], [max(telling.gaps_s) for telling in tellings]


async def storm(
    cluster: ChaosCluster, num_streams: int, num_kills: int, seed: int, on_end: Callable[[], None]
) -> StormResult:
    """Run it. `on_end` is called after each stream."""
    chance = random.Random(seed)
    truth, undisturbed = await learn_truth(cluster)
    result = StormResult(num_streams, undisturbed_gaps_s=undisturbed)
    last_s = num_kills * KILL_EVERY_S
    starts_s = sorted(chance.uniform(0, last_s) for _ in range(num_streams))

    async def one(number: int, start_s: float) -> None:
        await asyncio.sleep(start_s)
        which = number % len(truth)
        telling = Telling()
        addresses = cluster.addresses()
        first = number % len(addresses)
        await listen(stories()[which], f"storm-{number}", addresses[first:] + addresses[:first], telling)
        if telling.failure:
            result.failures.append(f"storm-{number}: {telling.failure}")
        result.difference += compare(telling.tokens, truth[which])
        result.num_reconnects += telling.num_connections - 1
        result.gaps_s.append(max(telling.gaps_s, default=0.0))
        on_end()

    async with asyncio.TaskGroup() as tasks:
        for number, start_s in enumerate(starts_s):
            tasks.create_task(one(number, start_s))
        tasks.create_task(_kill(cluster, num_kills, chance, result))
    result.census = await cluster.wait_clean(CLEAN_WITHIN_S)
    return result


async def _kill(cluster: ChaosCluster, num_kills: int, chance: random.Random, result: StormResult) -> None:
    """One process after the other, of any role, be it a role's last one."""
    refills = set()
    while sum(result.kills.values()) < num_kills:
        await asyncio.sleep(chance.expovariate(1 / KILL_EVERY_S))
        role = chance.choice(ROLES)
        alive = [member for member in cluster.of(role) if member.pid]
        if not alive:
            continue
        victim = chance.choice(alive)
        cluster.kill(victim)
        result.kills[role] += 1
        refills.add(asyncio.create_task(_refill(cluster, victim)))
    await asyncio.gather(*refills)


async def _refill(cluster: ChaosCluster, member: Member) -> None:
    await asyncio.sleep(EMPTY_S)
    cluster.start(member)
