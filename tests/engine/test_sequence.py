"""Sequence: what is derived from its tokens."""

import pytest

from engine.sequence import Sequence
from messages.request import SamplingParams


def test_prompt_and_output_are_told_apart() -> None:
    sequence = Sequence("s", [5, 6, 7, 8, 9], num_prompt_tokens=3, sampling=SamplingParams(seed=0))
    assert (sequence.prompt_token_ids, sequence.output_token_ids) == ([5, 6, 7], [8, 9])
    assert (sequence.num_tokens, sequence.num_output_tokens, sequence.num_computed_tokens) == (5, 2, 0)
    sequence.token_ids.append(1)
    assert (sequence.num_tokens, sequence.num_output_tokens) == (6, 3)


@pytest.mark.parametrize(("num_tokens", "num_blocks"), [(1, 1), (15, 1), (16, 1), (17, 2), (32, 2), (33, 3)])
def test_blocks_hold_all_tokens(num_tokens: int, num_blocks: int) -> None:
    sequence = Sequence("s", [0] * num_tokens, num_tokens, SamplingParams(seed=0))
    assert sequence.num_blocks(16) == num_blocks


def test_block_tables_are_not_shared_and_equal_tokens_are_two_sequences() -> None:
    one, two = (Sequence("s", [1], 1, SamplingParams(seed=0)) for _ in range(2))
    one.block_table.append(3)
    assert two.block_table == []
    assert one != two and len({one, two}) == 2
