"""Chunked prefill under a token budget."""

from hypothesis import given
from hypothesis import strategies as st

from prefill_worker.scheduler import Chunk, plan_step


def test_nothing_to_do() -> None:
    assert plan_step([], 512) == []


def test_a_long_prompt_takes_the_whole_budget() -> None:
    assert plan_step([1500, 20], 512) == [Chunk(0, 512)]


def test_a_short_prompt_shares_the_long_ones_last_step() -> None:
    assert plan_step([476, 20], 512) == [Chunk(0, 476), Chunk(1, 20)]


def test_the_last_that_fits_in_part_is_chunked() -> None:
    assert plan_step([300, 300], 512) == [Chunk(0, 300), Chunk(1, 212)]


@given(st.lists(st.integers(1, 3000), max_size=40), st.integers(1, 2048))
def test_budget_order_and_progress(remaining: list[int], budget: int) -> None:
    chunks = plan_step(remaining, budget)
    total = sum(chunk.num_tokens for chunk in chunks)
    assert total == min(budget, sum(remaining))
    assert [chunk.position for chunk in chunks] == list(range(len(chunks)))
    assert all(1 <= chunk.num_tokens <= remaining[chunk.position] for chunk in chunks)
    # Only the last one may be cut short: whoever came first is done first.
    assert all(chunk.num_tokens == remaining[chunk.position] for chunk in chunks[:-1])
