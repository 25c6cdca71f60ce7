"""How long a request may be, and what is said of one that is longer."""

import msgspec

from api.token_limits import TokenLimits, token_limits_of
from messages.worker_status import Role, WorkerState
from tests.api.fake_cluster import status


def test_the_smallest_bound_is_the_limit() -> None:
    small = status(Role.DECODE, capacity_tokens=64)
    workers = [status(Role.PREFILL, capacity_tokens=100), small]
    assert token_limits_of(workers, 80, 0) == TokenLimits(80, 0, 64)
    assert token_limits_of(workers, 80, 0).most == 64
    loading = msgspec.structs.replace(small, state=WorkerState.LOADING)
    assert token_limits_of([workers[0], loading], 80, 70).most == 70
    assert token_limits_of([], 80, 0).most == 80


def test_the_advice_names_what_bounds() -> None:
    assert TokenLimits(20, 0, 1000).advice(7, 14) == (
        "ask for at most 13 new tokens, or the server takes it with PDQ_MODEL__MAX_TOTAL_TOKENS=21"
    )
    both = TokenLimits(20, 100, 10).advice(7, 14)
    assert "at most 3 new tokens" in both and "PDQ_MODEL__MAX_TOTAL_TOKENS=21 and a KV pool 2.1 times as large" in both
    assert TokenLimits(20, 100, 0).advice(30, 14).startswith("shorten the prompt below 20 tokens, or the server takes")
    # No setting makes a model longer.
    assert TokenLimits(2000, 2048, 0).advice(7, 3000) == "ask for at most 1993 new tokens: the model was made for 2048"
