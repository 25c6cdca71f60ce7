"""Which sequences of a stopping worker are offered to other decode workers, and which prefill computes again. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from decode_worker.scheduler import can_admit
from messages.worker_status import Role, WorkerState, WorkerStatus


@dataclass(frozen=True, slots=True)
class DrainPlan:
    """Positions among the worker's sequences."""

    offer: list[int]
    recompute: list[int]


@dataclass(slots=True)
class _Room:
    """What a taker has left."""

    free_blocks: int
    num_running: int
    max_running: int

    def has_place(self, needed_blocks: int) -> bool:
        is_full = self.num_running >= self.max_running
        return not is_full and can_admit(needed_blocks, self.free_blocks, self.num_running)


def takers_of(workers: Sequence[WorkerStatus], worker_id: str, host_id: str) -> list[WorkerStatus]:
    """The other decode workers that are ready and say that they share memory with us."""
    return [
        worker
        for worker in workers
        if worker.role is Role.DECODE and worker.state is WorkerState.READY and worker.worker_id != worker_id
        if worker.export is not None and worker.export.host_id == host_id
    ]


def recompute_tokens_per_s(workers: Sequence[WorkerStatus]) -> float:
    """What the prefill workers do together, by their own measure; 0 when there is none or none knows yet."""
    ready = [worker for worker in workers if worker.role is Role.PREFILL and worker.state is WorkerState.READY]
    return sum(worker.tokens_per_s for worker in ready)


def plan_drain(
    needed_blocks: Sequence[int],
    takers: Sequence[WorkerStatus],
    recompute_tokens_per_s: float,
    pull_tokens_per_s: float,
) -> DrainPlan:
    """Offer what the takers have room for, unless computing it again is faster than pulling it.

    `needed_blocks`: of each sequence, who goes first first. Both ways take as long as there are tokens, so that the
    rates decide for all alike: a taker pulls one sequence after the other, at the rate at which we have pulled ours. A
    rate of 0 is unknown; then offering is the cheaper guess, as what is recomputed has to be pulled in the end, too.
    """
    everybody = list(range(len(needed_blocks)))
    if 0 < pull_tokens_per_s * len(takers) < recompute_tokens_per_s:
        return DrainPlan(offer=[], recompute=everybody)
    rooms = [_Room(worker.free_blocks, worker.num_running, worker.max_running) for worker in takers]
    offer: list[int] = []
    for position in everybody:
        needed = needed_blocks[position]
        open_rooms = [room for room in rooms if room.has_place(needed)]
        if open_rooms:
            room = max(open_rooms, key=lambda room: room.free_blocks)
            room.free_blocks -= needed
            room.num_running += 1
            offer.append(position)
    return DrainPlan(offer=offer, recompute=[position for position in everybody if position not in set(offer)])
