"""Chunked prefill under a token budget."""

from hypothesis import given
from hypothesis import strategies as st

from messages.request import Priority
from prefill_worker.scheduler import Chunk, open_classes, plan_step


def test_nothing_to_do() -> None:
    assert plan_step([], 512) == []


def test_a_long_prompt_takes_the_whole_budget() -> None:
    assert plan_step([1500], 512) == [Chunk(0, 512)]


def test_a_short_prompt_waits_for_no_long_one_and_that_one_goes_on() -> None:
    assert plan_step([1500, 20], 512) == [Chunk(0, 492), Chunk(1, 20)]
    assert plan_step([1500, 600], 512) == [Chunk(0, 64), Chunk(1, 448)]
    assert plan_step([1500, 600, 30], 512) == [Chunk(0, 64), Chunk(1, 418), Chunk(2, 30)]


def test_of_two_as_long_the_older_one_is_done_first() -> None:
    assert plan_step([300, 300], 512) == [Chunk(0, 300), Chunk(1, 212)]


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=8), st.integers(8, 2048))
def test_everybody_is_done_and_the_oldest_soon_enough(remaining: list[int], budget: int) -> None:
    left, oldest_steps = dict(enumerate(remaining)), 0
    while left:
        chunks = plan_step(list(left.values()), budget)
        assert chunks[0].position == 0
        oldest_steps += 0 in left
        for chunk, key in [(chunk, list(left)[chunk.position]) for chunk in chunks]:
            left[key] -= chunk.num_tokens
        left = {key: tokens for key, tokens in left.items() if tokens}
    assert oldest_steps <= -(-remaining[0] // (budget // 8))


def test_the_most_urgent_goes_first_and_the_oldest_keeps_its_share() -> None:
    assert plan_step([5000, 300, 300], 512, [2, 1, 0]) == [Chunk(0, 64), Chunk(1, 148), Chunk(2, 300)]
    assert plan_step([20, 300, 300], 512, [2, 1, 0]) == [Chunk(0, 20), Chunk(1, 192), Chunk(2, 300)]


@given(st.lists(st.tuples(st.integers(1, 3000), st.integers(0, 2)), max_size=40), st.integers(1, 2048))
def test_no_budget_is_left_unused_and_nobody_waits_but_for_the_more_urgent_and_the_shorter(
    sequences: list[tuple[int, int]], budget: int
) -> None:
    remaining, ranks = [tokens for tokens, _ in sequences], [rank for _, rank in sequences]
    shares = {chunk.position: chunk.num_tokens for chunk in plan_step(remaining, budget, ranks)}
    assert sum(shares.values()) == min(budget, sum(remaining))
    assert all(1 <= share <= remaining[position] for position, share in shares.items())
    assert not remaining or 0 in shares
    cut = [position for position, tokens in enumerate(remaining) if shares.get(position, 0) < tokens]
    for position in shares.keys() - {0}:
        key = (ranks[position], remaining[position], position)
        assert all((ranks[other], remaining[other], other) >= key for other in cut)


def test_a_step_worth_closes_its_class_and_those_below() -> None:
    high, normal, low = Priority
    assert open_classes([], [], 512) == [high, normal, low]
    assert open_classes([(normal, 512)], [], 512) == [high]
    assert open_classes([(low, 512)], [], 512) == [high, normal]
    assert open_classes([(high, 200), (normal, 200), (low, 200)], [], 512) == [high, normal]
    assert open_classes([(high, 512)], [], 512) == []
    assert open_classes([(low, 10)], [normal], 512) == [high]


def test_beside_one_long_prompt_there_is_room_for_another() -> None:
    high, normal, low = Priority
    assert open_classes([(normal, 5000)], [], 512) == [high, normal, low]
    assert open_classes([(normal, 5000), (normal, 5000)], [], 512) == [high]
