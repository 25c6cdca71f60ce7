"""How much may wait before a request, and when to come again: numbers in, numbers out."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.forecast import Asked, Supply, most_jobs, places_of, retry_after_s, room_for, supply_of, why_refused
from broker.backlog import UNBOUNDED, Backlog, Reason, Room, refusal
from messages.request import Priority
from messages.worker_status import Role, WorkerState
from settings.broker import QueueSettings
from tests.api.fake_cluster import status

HIGH, NORMAL, LOW = Priority
SETTINGS = QueueSettings(max_waiting=100, ttft_limit_s=2.0, place_limit_s=1.0)
SUPPLY = Supply(tokens_per_s=500.0, decode_places=8, sequences_per_s=4.0)


def waiting(jobs: int = 0, tokens: int = 0, decode: int = 0, decoding: int = 0) -> Backlog:
    """All of it normal."""
    return Backlog((0, jobs, 0), (0, tokens, 0), (0, decode, 0), decoding)


def judge(backlog: Backlog, asked: Asked, supply: Supply = SUPPLY, settings: QueueSettings = SETTINGS) -> str | None:
    return refusal(backlog, asked.priority, asked.num_choices, room_for(asked, supply, settings))


def test_the_first_token_would_come_too_late() -> None:
    # 500 tokens/s for 2 s: 1000 tokens, of which 200 are the request's own.
    assert judge(waiting(3, 800), Asked(prompt_tokens=200)) is None
    assert judge(waiting(3, 801), Asked(prompt_tokens=200)) is Reason.TOKENS
    assert judge(waiting(3, 801), Asked(HIGH, prompt_tokens=200)) is None  # it goes before them
    assert judge(waiting(3, 10**6), Asked(prompt_tokens=200), settings=QueueSettings(ttft_limit_s=0)) is None


def test_a_long_prompt_is_not_refused_for_ever() -> None:
    assert judge(waiting(), Asked(prompt_tokens=10**6)) is None
    assert judge(waiting(1, 500), Asked(prompt_tokens=10**6)) is None
    assert judge(waiting(1, 501), Asked(prompt_tokens=10**6)) is Reason.TOKENS


def test_a_deadline_is_a_limit_of_its_own() -> None:
    hurried = Asked(prompt_tokens=100, timeout_s=0.5)  # 250 tokens
    assert judge(waiting(1, 150), hurried) is None
    assert judge(waiting(1, 151), hurried) is Reason.TOKENS
    # With nobody before it, it is tried whatever the rate was last.
    assert judge(waiting(), Asked(prompt_tokens=100, timeout_s=0.001)) is None


def test_a_place_in_a_decode_batch_would_come_too_late() -> None:
    # 8 places, 4 leave in the second that it may wait.
    assert judge(waiting(decode=3, decoding=8), Asked()) is None
    assert judge(waiting(decode=4, decoding=8), Asked()) is Reason.SEQUENCES
    # While the 250 tokens ahead are computed 2 more leave.
    assert judge(waiting(5, 250, decoding=8), Asked()) is None
    assert judge(waiting(6, 250, decoding=8), Asked()) is Reason.SEQUENCES
    assert judge(waiting(decode=4, decoding=8), Asked(HIGH)) is None
    assert judge(waiting(decode=400, decoding=8), Asked(), settings=QueueSettings(place_limit_s=0)) is None


def test_what_is_not_known_refuses_nobody() -> None:
    assert room_for(Asked(), Supply(), SETTINGS) == Room(jobs=90)
    assert supply_of([]) == Supply()
    assert supply_of([status(Role.PREFILL), status(Role.DECODE, max_running=4)]) == Supply(0.0, 4, 0.0)


def test_low_leaves_room_for_normal_and_normal_for_high() -> None:
    assert [most_jobs(priority, SETTINGS) for priority in Priority] == [100, 90, 50]
    assert [most_jobs(priority, QueueSettings(max_waiting=1)) for priority in Priority] == [1, 1, 1]
    flood = Backlog((0, 0, 50), (0, 0, 10**6), (0, 0, 50), 8)
    assert judge(flood, Asked(LOW)) is not None
    assert judge(flood, Asked(NORMAL)) is None
    assert judge(flood, Asked(HIGH)) is None


def test_supply_is_what_ready_workers_do_together() -> None:
    workers = [
        status(Role.PREFILL, tokens_per_s=100.0),
        status(Role.PREFILL, tokens_per_s=300.0),
        status(Role.PREFILL),  # has not computed anything yet
        status(Role.PREFILL, tokens_per_s=900.0, state=WorkerState.DRAINING),
        status(Role.DECODE, max_running=8, sequence_s=2.0),
        status(Role.DECODE, max_running=8, sequence_s=4.0),
        status(Role.DECODE, max_running=64, state=WorkerState.LOADING),
    ]
    assert supply_of(workers) == Supply(600.0, 16, 16 / 3)


def test_kv_blocks_bound_the_places_too() -> None:
    worker = status(Role.DECODE, max_running=64, num_blocks=100, free_blocks=60, num_running=8)
    assert places_of(worker) == 20  # 5 blocks each
    assert places_of(msgspec.structs.replace(worker, free_blocks=99)) == 64
    assert places_of(msgspec.structs.replace(worker, num_running=0)) == 64


def test_retry_after_is_what_the_excess_takes() -> None:
    asked = Asked(prompt_tokens=200)
    room = room_for(asked, SUPPLY, SETTINGS)
    assert retry_after_s(Reason.TOKENS, waiting(9, 3300), asked, room, SUPPLY) == 5  # 2500 tokens too many
    assert retry_after_s(Reason.TOKENS, waiting(9, 801), asked, room, SUPPLY) == 1
    assert retry_after_s(Reason.SEQUENCES, waiting(decode=23, decoding=8), asked, room, SUPPLY) == 5  # 20 too many
    assert retry_after_s(Reason.JOBS, waiting(99, 99 * 200), asked, room, SUPPLY) == 4  # 10 jobs of 200 tokens
    assert retry_after_s(Reason.JOBS, waiting(99, 10**6), asked, room, SUPPLY) == 30
    assert retry_after_s(Reason.JOBS, waiting(99, 10**6), asked, room, Supply()) == 1


@given(
    st.builds(Supply, *[st.floats(0, 1e6)] * 3),
    st.builds(
        Asked, st.sampled_from(Priority), st.integers(1, 8), st.integers(0, 10**6), st.none() | st.floats(0, 100)
    ),
)
def test_where_nothing_waits_everybody_is_let_in(supply: Supply, asked: Asked) -> None:
    assert judge(Backlog(), asked, supply) is None
    assert room_for(asked, supply, SETTINGS).tokens_ahead <= UNBOUNDED


@pytest.mark.parametrize("reason", Reason)
@given(st.builds(Supply, *[st.floats(0, 1e6)] * 3), st.integers(0, 10**6), st.integers(0, 10**9))
def test_retry_after_is_bounded(reason: Reason, supply: Supply, jobs: int, tokens: int) -> None:
    asked = Asked(prompt_tokens=5)
    seconds = retry_after_s(reason, waiting(jobs, tokens, jobs), asked, room_for(asked, supply, SETTINGS), supply)
    assert 1 <= seconds <= 30


@pytest.mark.parametrize(
    ("reason", "asked", "said"),
    [
        (Reason.JOBS, Asked(LOW), "the queue is full, 50 low requests may wait; try again in 3 s, or the server takes"),
        (Reason.JOBS, Asked(LOW), "PDQ_QUEUE__MAX_WAITING=200 or more prefill workers"),
        (Reason.TOKENS, Asked(), "not come within 2 s; try again in 3 s, or the server takes it with"),
        (Reason.TOKENS, Asked(), "PDQ_QUEUE__TTFT_LIMIT_S=5 or more prefill workers"),
        (
            Reason.TOKENS,
            Asked(timeout_s=1.5),
            "within the request's 1.5 s; try again in 3 s, or give it X-Request-Timeout: 5",
        ),
        (Reason.TOKENS, Asked(timeout_s=9.0), "PDQ_QUEUE__TTFT_LIMIT_S=5"),
        (Reason.SEQUENCES, Asked(), "PDQ_QUEUE__PLACE_LIMIT_S=4 or more decode workers"),
    ],
)
def test_a_refusal_says_which_bound_and_what_would_help(reason: Reason, asked: Asked, said: str) -> None:
    assert said in why_refused(reason, asked, room_for(asked, SUPPLY, SETTINGS), 3, SETTINGS)
