"""What goes wrong: processes die and freeze, answers and connections are lost, Redis restarts, time leaps.

Each kind of event: to whom it could happen, and how.
"""

from collections.abc import Sequence

from redis.exceptions import ConnectionError

from bench.chaos.protocol.process import Process
from bench.chaos.protocol.redis_server import Link
from bench.chaos.protocol.shape import HEARTBEAT_S, LEASE_S
from bench.chaos.protocol.workers import SimulatedWorker
from bench.chaos.protocol.world import NUM_WORKERS, World
from messages.worker_status import Role


def leaps(_: World) -> Sequence[float]:
    """By how many seconds."""
    return [LEASE_S / 2, LEASE_S * 1.01, LEASE_S * 3]


def leap(world: World, seconds: float, _: int) -> None:
    """Nobody gets to do anything for so long: leases run out."""
    world.clock.now_s += seconds


def everybody(world: World) -> Sequence[SimulatedWorker]:
    """Every worker."""
    return world.workers


def crash(world: World, worker: SimulatedWorker, choice: int) -> None:
    """SIGKILL; its segment stays or goes."""
    worker.crash(keeps_segment=bool(choice % 2))
    world.workers.remove(worker)


def missing_roles(world: World) -> Sequence[Role]:
    """Roles that have lost a worker."""
    return [role for role in Role if sum(worker.role is role for worker in world.workers) < NUM_WORKERS]


def start(world: World, role: Role, _: int) -> None:
    """Another one in its place."""
    world.start(role)


def who_may_drain(world: World) -> Sequence[SimulatedWorker]:
    """Workers that were not told to stop."""
    return [worker for worker in world.workers if not (worker.is_draining or worker.process.is_frozen)]


def drain(world: World, worker: SimulatedWorker, _: int) -> None:
    """SIGTERM."""
    world.touched.append(worker.process)
    worker.drain()


def not_frozen(world: World) -> Sequence[SimulatedWorker]:
    """Workers that run."""
    return [worker for worker in world.workers if not worker.process.is_frozen]


def freeze(_: World, worker: SimulatedWorker, __: int) -> None:
    """SIGSTOP."""
    worker.process.is_frozen = True


def nap(world: World, worker: SimulatedWorker, _: int) -> None:
    """It sleeps through its lease, while the others' hearts go on beating; it wakes up some day and goes on."""
    worker.process.is_frozen = True
    until_s = world.clock.now_s + LEASE_S + HEARTBEAT_S
    while world.clock.now_s < until_s:
        world.clock.now_s += HEARTBEAT_S
        for process in world.awake:
            beat_once(world, process)


def beat_once(world: World, process: Process) -> None:
    """The process's heartbeat, if it is due, from waking up to falling asleep, without a pause."""
    while True:
        for job in [job for job in process.sleeping_jobs if job.fiber.paused_for.until_s <= world.clock.now_s]:
            process.wake_up(job)
        links = [job.fiber.paused_for for job in process.waiting_jobs if job.name == "heartbeat"]
        if not links:
            return
        for link in links:
            if link.can_serve:
                world.redis.serve(link)
            if link.can_deliver:
                link.deliver()


def frozen(world: World) -> Sequence[SimulatedWorker]:
    """Workers that sleep."""
    return [worker for worker in world.workers if worker.process.is_frozen]


def thaw(_: World, worker: SimulatedWorker, __: int) -> None:
    """SIGCONT."""
    worker.process.is_frozen = False


def answered_links(world: World) -> Sequence[Link]:
    """Connections with an answer on its way."""
    return [link for link in world.redis.links if link.answers and link.reader is not None]


def lose(_: World, link: Link, __: int) -> None:
    """The command ran; its sender hears of a lost connection and repeats it."""
    link.drop(ConnectionError("the answer was lost"))


def waiting_links(world: World) -> Sequence[Link]:
    """Connections that wait for Redis."""
    return [link for link in world.redis.links if link.reader is not None and not link.answers]


def cut(_: World, link: Link, __: int) -> None:
    """The connection is lost. What was sent is repeated, and may be served late all the same."""
    link.drop(ConnectionError("the connection was lost"))


def orphans(world: World) -> Sequence[Link]:
    """Late commands."""
    return world.redis.orphans


def vanish(world: World, link: Link, _: int) -> None:
    """They never arrive."""
    world.redis.orphans.remove(link)
    link.forget()


def the_redis(_: World) -> Sequence[str]:
    """There is one."""
    return ["redis"]


def restart(world: World, _: str, __: int) -> None:
    """It comes back with its data and nothing else."""
    world.redis.restart()
