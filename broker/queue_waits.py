"""How much waits in the queues, and for how long. For whoever watches the cluster; no worker and no admission asks."""

from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from broker.keys import GROUP, LOCAL, Keys, QueueName
from broker.scripts import load_script
from messages.request import Priority
from messages.worker_status import Role

QUEUES: tuple[QueueName, ...] = (Role.PREFILL, Role.DECODE, LOCAL)


@dataclass(frozen=True, slots=True)
class Wait:
    """Of one class of one queue."""

    queue: QueueName
    priority: Priority
    num_jobs: int  # that nobody has taken
    oldest_s: float  # for how long the first of them has waited, by Redis' clock; 0 where none waits


async def read_waits(client: Redis, keys: Keys) -> list[Wait]:
    """Every class of every queue, in one round trip."""
    places = [(name, priority) for name in QUEUES for priority in Priority]
    rows: list[Any] = await load_script("queue_waits").run(
        client, [keys.queue(name, priority) for name, priority in places], [GROUP]
    )
    return [
        Wait(name, priority, num_jobs, age_ms / 1000)
        for (name, priority), (num_jobs, age_ms) in zip(places, rows, strict=True)
    ]
