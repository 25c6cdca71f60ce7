"""What goes on by itself: commands reach Redis, answers arrive, threads go on, time passes.

Each kind of event: to whom it could happen, and how.
"""

from collections.abc import Sequence

from bench.chaos.protocol.process import Job, Process
from bench.chaos.protocol.redis_server import Link
from bench.chaos.protocol.workers import SimulatedWorker
from bench.chaos.protocol.world import World


def unserved(world: World) -> Sequence[Link]:
    """Connections on which Redis has something to do."""
    return [link for link in (*world.redis.links, *world.redis.orphans) if link.can_serve]


def serve(world: World, link: Link, _: int) -> None:
    """Redis runs the next command."""
    world.redis.serve(link)


def undelivered(world: World) -> Sequence[Link]:
    """Connections with an answer that somebody waits for."""
    return [link for process in world.awake for link in process.links if link.can_deliver]


def deliver(world: World, link: Link, _: int) -> None:
    """The answer arrives, and its process goes on until everybody in it waits."""
    world.touched.append(link.owner)
    link.deliver()


def waiting_threads(world: World) -> Sequence[Job]:
    """Threads that can go on."""
    return [job for process in world.awake for job in process.jobs]


def go_on(world: World, job: Job, _: int) -> None:
    """The thread runs to its next stop."""
    world.touched.append(job.process)
    job.process.go_on(job)


def due_timers(world: World) -> Sequence[Process]:
    """Processes that slept long enough."""
    now_s = world.clock.now_s
    return [one for one in world.awake if (when_s := one.loop.next_timer_s) is not None and when_s <= now_s]


def run_timers(world: World, process: Process, _: int) -> None:
    """They wake up."""
    world.touched.append(process)
    process.loop.run_timers()


def due_beats(world: World) -> Sequence[SimulatedWorker]:
    """Workers whose heartbeat is due."""
    now_s = world.clock.now_s
    return [
        worker
        for worker in world.workers
        if not worker.process.is_frozen and (when_s := worker.next_beat_s) is not None and when_s <= now_s
    ]


def beat(world: World, worker: SimulatedWorker, _: int) -> None:
    """Its thread wakes up."""
    world.touched.append(worker.process)
    worker.beat()


def next_moment(world: World) -> Sequence[str]:
    """Whether anything happens by itself later."""
    return ["next"] if _next_s(world) is not None else []


def tick(world: World, _: str, __: int) -> None:
    """Time goes on to that moment."""
    next_s = _next_s(world)
    assert next_s is not None
    world.clock.now_s = next_s


def _next_s(world: World) -> float | None:
    times = [process.loop.next_timer_s for process in world.awake]
    times += [worker.next_beat_s for worker in world.workers if not worker.process.is_frozen]
    times += [link.blocked_until_s for link in world.redis.links]
    return min((when_s for when_s in times if when_s is not None and when_s > world.clock.now_s), default=None)
