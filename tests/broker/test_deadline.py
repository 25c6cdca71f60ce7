"""When a request's time is over, and what is said."""

from broker.deadline import deadline_event, is_past
from messages.request import GenerationRequest, SamplingParams
from messages.token_event import FinishReason

REQUEST = GenerationRequest("id", [1], SamplingParams(seed=1), created_ms=1000, deadline_ms=3500)


def test_past_only_after_the_tolerance() -> None:
    assert not is_past(REQUEST, 3500)
    assert is_past(REQUEST, 3501)
    assert not is_past(REQUEST, 4000, tolerance_s=0.5)
    assert is_past(REQUEST, 4001, tolerance_s=0.5)


def test_without_a_deadline_it_is_never_late() -> None:
    assert not is_past(GenerationRequest("id", [1], SamplingParams(seed=1), created_ms=1), 10**15)


def test_what_is_said_names_the_time_it_had() -> None:
    event = deadline_event(REQUEST)
    assert (event.finish_reason, event.error_status) == (FinishReason.ERROR, 504)
    assert event.error == (
        "the request was not done within its 2.5 s (Status code: 504): ask for fewer tokens, or give it "
        "X-Request-Timeout: 5 (without one, PDQ_API__REQUEST_TIMEOUT_S holds)"
    )
