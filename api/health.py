"""Whether the cluster can answer a request: a judgement over the workers' heartbeats.

Pure. A worker counts when it has loaded its model and its loop still comes round; that it is alive at all is the
registry's word.
"""

from collections.abc import Sequence

from messages.worker_status import Role, WorkerState, WorkerStatus


def needed_roles(is_reward: bool) -> tuple[Role, ...]:
    """The roles a request passes through; a reward model's score is the prefill's last word."""
    return (Role.PREFILL,) if is_reward else (Role.PREFILL, Role.DECODE)


def is_progressing(worker: WorkerStatus, no_progress_s: float) -> bool:
    """Whether `worker` is ready and its loop came round within `no_progress_s`."""
    return worker.state == WorkerState.READY and worker.idle_s < no_progress_s


def lacking_roles(workers: Sequence[WorkerStatus], roles: Sequence[Role], no_progress_s: float) -> list[Role]:
    """The roles of `roles` that no worker fills; empty when the cluster is healthy."""
    filled = {worker.role for worker in workers if is_progressing(worker, no_progress_s)}
    return [role for role in roles if role not in filled]


def capacity_tokens(workers: Sequence[WorkerStatus], role: Role) -> int:
    """KV tokens of the workers of `role` that hold or take sequences."""
    holding = (WorkerState.READY, WorkerState.DRAINING)
    return sum(worker.capacity_tokens for worker in workers if worker.role == role and worker.state in holding)
