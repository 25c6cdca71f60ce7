"""Who is offered and who is computed again when a decode worker stops."""

from typing import Any

import pytest

from decode_worker.drain_plan import DrainPlan, plan_drain, recompute_tokens_per_s, takers_of
from messages.kv_transfer import PoolExport
from messages.worker_status import Role, WorkerState, WorkerStatus


def worker(worker_id: str = "other", role: Role = Role.DECODE, host_id: str = "here", **fields: Any) -> WorkerStatus:
    given: dict[str, Any] = {"num_blocks": 100, "free_blocks": 100, "max_running": 8} | fields
    state = given.pop("state", WorkerState.READY)
    export = PoolExport(worker_id, f"pdq-{worker_id}", 1, host_id, "cpu", 4096, 100) if host_id else None
    return WorkerStatus(worker_id, role, state, "host", 1, 0, export=export, **given)


def test_a_taker_is_another_ready_decode_worker_with_which_memory_is_shared() -> None:
    workers = [
        worker("us"),
        worker("other"),
        worker("elsewhere", host_id="there"),
        worker("not exported", host_id=""),
        worker("loading", state=WorkerState.LOADING),
        worker("draining", state=WorkerState.DRAINING),
        worker("prefill", Role.PREFILL),
    ]
    assert [one.worker_id for one in takers_of(workers, "us", "here")] == ["other"]


def test_the_rate_of_recomputing_is_that_of_the_ready_prefill_workers_together() -> None:
    workers = [
        worker("a", Role.PREFILL, tokens_per_s=300.0),
        worker("b", Role.PREFILL, tokens_per_s=200.0),
        worker("c", Role.PREFILL, tokens_per_s=200.0, state=WorkerState.DRAINING),
        worker("d", tokens_per_s=900.0),
    ]
    assert recompute_tokens_per_s(workers) == 500.0
    assert recompute_tokens_per_s([]) == 0.0


@pytest.mark.parametrize(
    ("recompute", "pull", "num_takers", "is_offered"),
    [
        (500.0, 50_000.0, 1, True),
        (60_000.0, 50_000.0, 1, False),
        (60_000.0, 50_000.0, 2, True),
        (0.0, 50_000.0, 1, True),
        (500.0, 0.0, 1, True),
        (500.0, 50_000.0, 0, False),
    ],
)
def test_the_faster_way_is_taken(recompute: float, pull: float, num_takers: int, is_offered: bool) -> None:
    plan = plan_drain([3, 5], [worker() for _ in range(num_takers)], recompute, pull)
    assert plan == (DrainPlan([0, 1], []) if is_offered else DrainPlan([], [0, 1]))


def test_no_more_is_offered_than_the_takers_have_slots_for() -> None:
    takers = [worker(max_running=8, num_running=7), worker(max_running=8, num_running=8)]
    assert plan_drain([2, 2, 2], takers, 500.0, 50_000.0) == DrainPlan(offer=[0], recompute=[1, 2])


def test_no_more_is_offered_than_the_takers_have_blocks_for() -> None:
    # A newcomer has to leave a block for each that runs; 40 + 10 fit into 60, 20 more do not, 4 more do.
    takers = [worker(free_blocks=60)]
    assert plan_drain([40, 10, 20, 4], takers, 500.0, 50_000.0) == DrainPlan(offer=[0, 1, 3], recompute=[2])


def test_takers_share_what_is_offered() -> None:
    takers = [worker("a", free_blocks=30), worker("b", free_blocks=30)]
    assert plan_drain([20, 20, 20], takers, 500.0, 50_000.0) == DrainPlan(offer=[0, 1], recompute=[2])
