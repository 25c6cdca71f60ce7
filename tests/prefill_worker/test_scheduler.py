"""Chunked prefill under a token budget."""

from hypothesis import given
from hypothesis import strategies as st

from messages import Priority
from prefill_worker.scheduler import Chunk, open_classes, plan_step


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


def test_the_most_urgent_goes_first_and_the_oldest_keeps_its_share() -> None:
    assert plan_step([5000, 300, 300], 512, [2, 1, 0]) == [Chunk(0, 64), Chunk(1, 148), Chunk(2, 300)]
    assert plan_step([20, 300, 300], 512, [2, 1, 0]) == [Chunk(0, 20), Chunk(1, 192), Chunk(2, 300)]


@given(st.lists(st.tuples(st.integers(1, 3000), st.integers(0, 2)), max_size=40), st.integers(1, 2048))
def test_no_budget_is_left_unused_and_a_class_waits_only_for_those_above(
    sequences: list[tuple[int, int]], budget: int
) -> None:
    remaining, ranks = [tokens for tokens, _ in sequences], [rank for _, rank in sequences]
    shares = {chunk.position: chunk.num_tokens for chunk in plan_step(remaining, budget, ranks)}
    assert sum(shares.values()) == min(budget, sum(remaining))
    assert all(1 <= share <= remaining[position] for position, share in shares.items())
    assert not remaining or 0 in shares
    cut = [position for position, tokens in enumerate(remaining) if shares.get(position, 0) < tokens]
    for position in shares.keys() - {0}:
        assert all((ranks[other], other) >= (ranks[position], position) for other in cut)


def test_a_long_prompt_closes_its_class_and_those_below() -> None:
    high, normal, low = Priority
    assert open_classes([], [], 512) == [high, normal, low]
    assert open_classes([(normal, 5000)], [], 512) == [high]
    assert open_classes([(low, 5000)], [], 512) == [high, normal]
    assert open_classes([(high, 200), (normal, 200), (low, 200)], [], 512) == [high, normal]
    assert open_classes([(high, 512)], [], 512) == []
    assert open_classes([(low, 10)], [normal], 512) == [high]
