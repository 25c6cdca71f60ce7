"""Which prompts a decode worker prefills itself, by figures alone."""

from dataclasses import replace

import pytest

from broker.bid import Bid
from decode_worker.placement import (
    MAX_STRETCH,
    UNBOUNDED,
    Here,
    Limits,
    There,
    are_beside,
    bid_for,
    chunk_tokens,
    is_local,
    plan_chunks,
    remote_workers,
)
from decode_worker.prefill_pace import PrefillPace
from messages.worker_status import Role, WorkerState, WorkerStatus

LIMITS = Limits("auto", max_stall_s=0.040, max_prefill_s=0.250, token_budget=512)
IDLE = Here(num_running=0, step_s=0.0, room=8, free_tokens=4000)
BUSY = Here(num_running=4, step_s=0.060, room=4, free_tokens=4000)
NEAR = There(num_workers=1, tokens_per_s=1000.0, handoff_s=0.010, pull_tokens_per_s=100_000.0)


def pace_of(fixed_s: float, token_s: float) -> PrefillPace:
    pace = PrefillPace()
    for num_tokens in (32, 128):
        pace.note(num_tokens, fixed_s + num_tokens * token_s)
    return pace


FAST, SLOW = pace_of(0.0, 0.001), pace_of(0.0, 0.002)


def test_an_idle_worker_that_is_as_fast_takes_what_keeps_it_busy_for_no_longer_than_allowed() -> None:
    bid = bid_for(LIMITS, IDLE, NEAR, FAST, looks=False)
    assert bid is not None and bid.num_jobs == 1
    assert bid.most_tokens in (249, 250)
    assert bid.fits(249, 0, is_new=True) and not bid.fits(251, 100_000, is_new=True)


def test_a_slower_worker_takes_what_the_hand_off_costs_more_than() -> None:
    bid = bid_for(LIMITS, IDLE, NEAR, SLOW, looks=False)
    assert bid is not None
    # Per token 2 ms here, and 1.01 ms there: 10 ms of a hand-off are worth ten tokens.
    assert bid.fits(10, 0, is_new=True) and not bid.fits(11, 0, is_new=True)


def test_what_is_ahead_of_the_prefill_workers_makes_local_worth_more() -> None:
    bid = bid_for(LIMITS, IDLE, NEAR, SLOW, looks=False)
    assert bid is not None
    assert bid.fits(110, 100, is_new=True) and not bid.fits(115, 100, is_new=True)
    assert not bid.fits(126, 10_000, is_new=True)  # longer than the worker may be kept busy


def test_more_prefill_workers_leave_less_to_do_here() -> None:
    one = bid_for(LIMITS, IDLE, replace(NEAR, tokens_per_s=1000.0), SLOW, looks=False)
    four = bid_for(LIMITS, IDLE, replace(NEAR, num_workers=4, tokens_per_s=4000.0), SLOW, looks=False)
    assert one is not None and four is not None
    assert four.free_tokens < one.free_tokens
    assert four.tokens_per_token_ahead < one.tokens_per_token_ahead


def test_without_prefill_workers_everything_that_is_allowed_is_local() -> None:
    bid = bid_for(LIMITS, IDLE, replace(NEAR, num_workers=0, tokens_per_s=0.0), SLOW, looks=False)
    assert bid is not None and bid.fits(124, 0, is_new=True)


@pytest.mark.parametrize("fixed_s", [0.0, 0.005, 0.010])
def test_a_chunk_beside_running_streams_is_never_longer_than_allowed(fixed_s: float) -> None:
    pace = pace_of(fixed_s, 0.001)
    for step_s in (0.010, 0.020, 0.040, 0.100):
        here = replace(BUSY, step_s=step_s)
        chunk = chunk_tokens(LIMITS, here, pace)
        assert chunk == 0 or pace.seconds(chunk) <= min(LIMITS.max_stall_s, MAX_STRETCH * step_s) + 1e-9


def test_beside_running_streams_nothing_is_taken_when_no_chunk_is_short_enough() -> None:
    dear = pace_of(0.035, 0.001)  # reading the weights alone takes most of what may be
    assert chunk_tokens(LIMITS, BUSY, dear) == 0
    assert bid_for(LIMITS, BUSY, NEAR, dear, looks=False) is None
    assert bid_for(LIMITS, IDLE, NEAR, dear, looks=False) is not None


def test_an_unknown_decode_step_lets_nothing_in_beside_it() -> None:
    assert chunk_tokens(LIMITS, replace(BUSY, step_s=0.0), FAST) == 0


def test_the_steps_between_chunks_count() -> None:
    alone = bid_for(LIMITS, IDLE, NEAR, FAST, looks=False)
    beside = bid_for(LIMITS, BUSY, NEAR, FAST, looks=False)
    assert alone is not None and beside is not None
    assert beside.most_tokens < alone.most_tokens and beside.free_tokens < alone.free_tokens


@pytest.mark.parametrize(
    "here", [replace(IDLE, room=0), replace(IDLE, free_tokens=0)], ids=["no place in the batch", "no blocks"]
)
@pytest.mark.parametrize("mode", ["auto", "always"])
def test_without_room_nothing_is_taken(here: Here, mode: str) -> None:
    assert bid_for(replace(LIMITS, mode=mode), here, NEAR, FAST, looks=True) is None  # type: ignore[arg-type]


def test_never_takes_nothing_and_always_everything_that_has_room() -> None:
    assert bid_for(replace(LIMITS, mode="never"), IDLE, NEAR, FAST, looks=True) is None
    always = bid_for(replace(LIMITS, mode="always"), BUSY, NEAR, PrefillPace(), looks=True)
    assert always == Bid(4, 4000, UNBOUNDED, 0.0)
    assert chunk_tokens(replace(LIMITS, mode="always"), BUSY, PrefillPace()) == 512


def test_auto_without_a_measurement_takes_nothing() -> None:
    assert bid_for(LIMITS, IDLE, NEAR, PrefillPace(), looks=True) is None


def test_a_long_prompt_comes_for_a_look_where_enough_is_cached_and_stays_if_it_is_its_own() -> None:
    here = replace(IDLE, cached_tokens=320)
    bid = bid_for(LIMITS, here, NEAR, SLOW, looks=True)
    assert bid is not None
    assert bid.fits(400, 0, is_new=True) and not bid.fits(400, 0, is_new=False)
    assert is_local(bid, 330, num_cached=320) and not is_local(bid, 330, num_cached=0)
    blind = bid_for(LIMITS, here, NEAR, SLOW, looks=False)
    assert blind is not None and not blind.fits(400, 0, is_new=True)


def test_no_prompt_is_looked_at_that_could_not_stay() -> None:
    bid = bid_for(LIMITS, replace(IDLE, cached_tokens=320), NEAR, SLOW, looks=True)
    assert bid is not None and not bid.fits(320 + 126, 0, is_new=True)


def test_old_figures_are_measured_again_with_a_short_prompt_while_nobody_runs() -> None:
    slow = pace_of(0.0, 1.0)
    assert bid_for(LIMITS, IDLE, NEAR, slow, looks=False) is None
    bid = bid_for(LIMITS, IDLE, NEAR, slow, looks=False, tries=True)
    assert bid is not None and bid.fits(64, 0, is_new=True) and not bid.fits(65, 0, is_new=True)
    assert bid_for(LIMITS, replace(BUSY, step_s=0.001), NEAR, slow, looks=False, tries=True) is None


def test_chunks_go_to_the_oldest_first() -> None:
    assert plan_chunks([100, 30, 50], 120) == [100, 20]
    assert plan_chunks([100], 40) == [40]
    assert plan_chunks([], 40) == []


def status(role: Role, state: WorkerState, tokens_per_s: float) -> WorkerStatus:
    return WorkerStatus("w", role, state, "host", 1, 0, tokens_per_s=tokens_per_s)


def test_the_prefill_workers_that_are_ready_count() -> None:
    ready, loading = WorkerState.READY, WorkerState.LOADING
    workers = [
        status(Role.PREFILL, ready, 500.0),
        status(Role.PREFILL, ready, 0.0),  # has not measured: like the others
        status(Role.PREFILL, loading, 900.0),
        status(Role.DECODE, ready, 900.0),
    ]
    assert remote_workers(workers) == (2, 1000.0)
    assert remote_workers([status(Role.PREFILL, ready, 0.0)]) == (1, 0.0)
    assert remote_workers([]) == (0, 0.0)


def test_those_who_compute_on_the_same_cores_are_left_to_it() -> None:
    beside = replace(NEAR, shares_cores=True)
    assert bid_for(LIMITS, IDLE, NEAR, FAST, looks=True) is not None
    assert bid_for(LIMITS, IDLE, beside, FAST, looks=True) is None
    assert bid_for(LIMITS, IDLE, replace(beside, num_workers=0), FAST, looks=True) is not None
    assert bid_for(replace(LIMITS, mode="always"), IDLE, beside, FAST, looks=True) is not None


def test_who_is_beside() -> None:
    ready = status(Role.PREFILL, WorkerState.READY, 1.0)
    assert are_beside([ready], ready.host) and not are_beside([ready], "elsewhere")
    assert not are_beside([status(Role.PREFILL, WorkerState.DRAINING, 1.0)], ready.host)
    assert not are_beside([status(Role.DECODE, WorkerState.READY, 1.0)], ready.host)
