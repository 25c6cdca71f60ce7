"""The end of a simulated cluster's life: nothing goes wrong any more, and every promise must be kept.

Each client has its whole answer and one end of it, nobody holds a block, an offer or an entry, and what is left in
Redis goes by itself.
"""

from collections.abc import Callable

from bench.chaos.protocol.kinds import KINDS, pick
from bench.chaos.protocol.oracle import Violation
from bench.chaos.protocol.world import World
from broker.keys import GROUP
from messages.worker_status import Role

SETTLE_S = 90.0  # of the cluster's time; longer means that something is lost
MAX_EVENTS = 60_000
_GOING_ON = [KINDS[name] for name in ("serve", "deliver", "thread", "timer", "beat")]


def settle(world: World, choose: Callable[[int], int]) -> None:
    """Let everything come to its end. `choose(n)` is a number below n. Raises AssertionError."""
    for worker in world.workers:
        worker.process.is_frozen = False
    for role in Role:
        if not any(worker.role is role and not worker.is_draining for worker in world.workers):
            world.start(role)
    deadline_s, last = world.clock.now_s + SETTLE_S, world.num_events + MAX_EVENTS
    while not _is_settled(world):
        if world.clock.now_s > deadline_s or world.num_events > last:
            raise Violation(f"not settled after {SETTLE_S:g} s: {_what_is_left(world)}")
        kinds = [kind for kind in _GOING_ON if kind.candidates(world)]
        pick(world, kinds[choose(len(kinds))] if kinds else KINDS["tick"], choose(1 << 16))
    _check_clients(world)
    _check_redis(world)


def _is_settled(world: World) -> bool:
    return (
        not world.api.open_clients
        and not world.redis.orphans
        and all(world.redis.length(queue) == 0 for queue in world.queues)
        and all(worker.is_idle and not worker.is_draining for worker in world.workers)
    )


def _what_is_left(world: World) -> str:
    clients = [str(client) for client in world.api.open_clients]
    queues = {queue: length for queue in world.queues if (length := world.redis.length(queue))}
    busy = [str(worker) for worker in world.workers if not worker.is_idle]
    used = {str(worker): worker.space.num_used for worker in world.workers if worker.space.num_used}
    return f"clients {clients}, queues {queues}, busy workers {busy}, blocks {used}"


def _check_clients(world: World) -> None:
    for client in world.api.clients:
        for choice, received in enumerate(client.received):
            truth = world.oracle.choices[str(client), choice]
            if truth.hop == 0:
                continue  # it was refused, or its client left before it was created
            if not truth.is_finished:
                raise Violation(f"{client}:{choice} has no end")
            if not (truth.is_cancelled or truth.deadline_ms) and received != truth.events:
                raise Violation(f"{client}:{choice}: its client got {len(received)} of {len(truth.events)} events")


def _check_redis(world: World) -> None:
    for queue in world.queues:
        if pending := world.redis.pending(queue, GROUP):
            raise Violation(f"entries of {queue} are pending for ever: {list(pending)}")
    for key in (world.keys.active_sizes(), world.keys.active_phases(), world.keys.reader_leases()):
        if world.redis.value(key):
            raise Violation(f"{key} is not empty")
    for name in world.redis.request_keys():
        if world.redis.expires_s(name) is None:
            raise Violation(f"{name.decode()} would stay for ever")
