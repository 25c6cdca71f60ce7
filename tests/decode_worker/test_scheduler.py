"""Who decodes and who is preempted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decode_worker.scheduler import Demand, StepPlan, can_admit, expected_stay_s, plan_step


def test_everybody_decodes_while_there_are_blocks() -> None:
    plan = plan_step([Demand(2, 2), Demand(3, 4)], free_blocks=1)
    assert (plan.decode, plan.preempt) == ([0, 1], [])


def test_the_newest_gives_its_blocks_to_the_oldest() -> None:
    plan = plan_step([Demand(2, 3), Demand(2, 3)], free_blocks=0)
    assert (plan.decode, plan.preempt) == ([0], [1])


def test_a_sequence_that_fits_nowhere_is_left_to_the_caller() -> None:
    plan = plan_step([Demand(4, 5)], free_blocks=0)
    assert (plan.decode, plan.preempt) == ([], [0])


demands = st.builds(lambda held, grows: Demand(held, held + grows), st.integers(1, 20), st.integers(0, 1))


@given(st.lists(demands, max_size=30), st.integers(0, 40))
def test_what_is_planned_fits_and_no_more_is_preempted_than_needed(running: list[Demand], free_blocks: int) -> None:
    plan = plan_step(running, free_blocks)
    assert plan.decode == list(range(len(plan.decode)))
    assert sorted(plan.decode + plan.preempt) == list(range(len(running)))

    def spare(num_kept: int) -> int:
        freed = sum(demand.held_blocks for demand in running[num_kept:])
        return free_blocks + freed - sum(demand.missing_blocks for demand in running[:num_kept])

    assert spare(len(plan.decode)) >= 0
    if plan.preempt:
        assert spare(len(plan.decode) + 1) < 0


def test_admission_leaves_a_block_for_everybody() -> None:
    assert can_admit(needed_blocks=5, free_blocks=8, num_running=2)
    assert not can_admit(needed_blocks=5, free_blocks=7, num_running=2)


def test_an_empty_worker_admits_whatever_fits() -> None:
    assert can_admit(needed_blocks=5, free_blocks=5, num_running=0)
    assert not can_admit(needed_blocks=6, free_blocks=5, num_running=0)


def test_low_gives_its_blocks_before_what_is_newer_and_more_urgent() -> None:
    low, normal, high = Demand(2, 3, 2), Demand(2, 3, 1), Demand(2, 3, 0)
    assert plan_step([low, high, normal], free_blocks=1) == StepPlan([1, 2], [0])
    assert plan_step([low, low, normal, high], free_blocks=0) == StepPlan([2, 3], [1, 0])
    assert plan_step([high, low, high], free_blocks=3) == StepPlan([0, 1, 2], [])


def test_a_stay_is_what_the_running_ones_may_make_by_the_share_that_others_made() -> None:
    assert expected_stay_s(0.02, [100, 300], used_share=0.5) == pytest.approx(2.0)
    assert expected_stay_s(0.02, [100], used_share=0.0) == 0  # nothing has ended yet
