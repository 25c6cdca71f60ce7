"""Clients that change their minds, in waves, and whether the cluster is whole afterwards.

Each leaves at a random moment: before it is answered, among the first tokens, by closing its connection or by DELETE.
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from bench.chaos.cluster import Census, ChaosCluster
from bench.chaos.event_source import Address, Connection, ConnectionLost, Refused, delete, post
from bench.chaos.storm import CLEAN_WITHIN_S, learn_truth
from bench.chaos.story import Difference, Telling, compare, listen, stories

WAVE = 200
AFTERWARDS_AT_ONCE = 96
LONGEST_WAIT_S = 0.4  # before a client leaves that has heard nothing
MOST_TOKENS = 8  # that a client hears before it leaves


@dataclass(slots=True)
class CancelsResult:
    """What came of it."""

    num_cancels: int = 0
    num_afterwards: int = 0
    dirty: list[Census] = field(default_factory=list)  # waves after which something was left
    failures: list[str] = field(default_factory=list)
    difference: Difference = field(default_factory=Difference)

    @property
    def is_passed(self) -> bool:
        """Nothing left after any wave, and every request afterwards right."""
        return not self.dirty and not self.failures and self.difference == Difference()


async def cancels(
    cluster: ChaosCluster, num_cancels: int, num_afterwards: int, seed: int, on_end: Callable[[], None]
) -> CancelsResult:
    """Run the waves, then `num_afterwards` requests that nobody cancels. `on_end` is called after each request."""
    chance = random.Random(seed)
    truth, _ = await learn_truth(cluster)
    result = CancelsResult()
    while result.num_cancels < num_cancels:
        wave = range(result.num_cancels, min(num_cancels, result.num_cancels + WAVE))
        async with asyncio.TaskGroup() as tasks:
            for number in wave:
                tasks.create_task(_ask_and_leave(cluster.addresses(), number, random.Random(chance.random()), on_end))
        result.num_cancels = wave.stop
        census = await cluster.wait_clean(CLEAN_WITHIN_S)
        if not census.is_clean:
            result.dirty.append(census)
    at_once = asyncio.Semaphore(AFTERWARDS_AT_ONCE)

    async def right(number: int) -> None:
        telling, which = Telling(), number % len(truth)
        async with at_once:
            await listen(stories()[which], f"afterwards-{number}", cluster.addresses()[number % 2 :], telling, False)
        if telling.failure:
            result.failures.append(f"afterwards-{number}: {telling.failure}")
        else:
            # Without X-SSE-Ids the frames have no ids; their place stands for them.
            result.difference += compare(telling.in_place(), truth[which])
        result.num_afterwards += 1
        on_end()

    async with asyncio.TaskGroup() as tasks:
        for number in range(num_afterwards):
            tasks.create_task(right(number))
    return result


async def _ask_and_leave(
    addresses: list[Address], number: int, chance: random.Random, on_end: Callable[[], None]
) -> None:
    all_stories = stories()
    request_id = f"cancel-{number}"
    address = chance.choice(addresses)
    ask = post("/generate_stream", all_stories[number % len(all_stories)].body(), [("X-Request-Id", request_id)])
    num_tokens = chance.randrange(MOST_TOKENS)
    try:
        connection = await Connection.open(address, ask)
    except ConnectionLost:
        on_end()
        return
    try:
        async with asyncio.timeout(chance.uniform(0, LONGEST_WAIT_S) if num_tokens == 0 else None):
            async for _ in connection.events():
                num_tokens -= 1
                if num_tokens <= 0:
                    break
        if chance.random() < 0.5:
            stop = await Connection.open(chance.choice(addresses), delete(f"/requests/{request_id}"))
            async for _ in stop.pieces():
                pass
            stop.abort()
    except (TimeoutError, ConnectionLost, Refused):
        pass
    finally:
        connection.abort()
        on_end()
