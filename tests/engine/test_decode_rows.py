"""What a decode step is told of its sequences."""

import pytest

from engine.decode_rows import DecodeRows
from engine.sequence import Sequence
from messages.request import SamplingParams


def sequence(num_tokens: int, blocks: list[int], num_computed: int | None = None) -> Sequence:
    tokens = list(range(100, 100 + num_tokens))
    computed = num_tokens - 1 if num_computed is None else num_computed
    return Sequence("test", tokens, num_tokens, SamplingParams(seed=0), computed, blocks)


def test_rows() -> None:
    rows = DecodeRows.of([sequence(1, [7]), sequence(17, [3, 9]), sequence(16, [5, 6])], block_size=16)
    assert len(rows) == 3
    assert rows.token_ids == [100, 116, 115]
    assert rows.positions == [0, 16, 15] and rows.seq_lens == [1, 17, 16]
    assert rows.slots == [7 * 16, 9 * 16, 5 * 16 + 15]
    assert rows.block_tables == [[7], [3, 9], [5]], "a block without a computed or new token is not read"
    assert rows.padded_tables() == [[7, 7], [3, 9], [5, 5]]


def test_only_the_last_token_may_be_missing() -> None:
    with pytest.raises(AssertionError, match="exactly the last token"):
        DecodeRows.of([sequence(5, [1], num_computed=3)], block_size=16)
