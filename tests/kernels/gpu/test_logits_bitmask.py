"""A grammar's bits under the interpreter: every logit as the twin leaves it, and nothing else touched."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import logits_bitmask as twin
from kernels.gpu import logits_bitmask
from tests.kernels.gpu.agree import assert_agrees
from tests.kernels.gpu.drawn import dtypes, randn, seeds


def whole(apply: object) -> object:
    def run(base: Tensor, logits: Tensor, bitmask: Tensor, rows: Tensor | None) -> Tensor:
        apply(logits, bitmask, rows)  # type: ignore[operator]
        return base

    return run


@given(
    batch=st.integers(0, 4),
    vocab_size=st.sampled_from([1, 31, 32, 33, 1024, 1500]),
    spare_words=st.integers(0, 2),
    dtype=dtypes,
    seed=seeds,
    has_rows=st.booleans(),
)
@settings(max_examples=30, deadline=None)
def test_every_bit(
    batch: int, vocab_size: int, spare_words: int, dtype: torch.dtype, seed: int, has_rows: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    base = randn(batch, vocab_size + 5, dtype=dtype, seed=seed)
    rows = torch.randperm(batch, generator=generator)[: batch // 2 + 1] if has_rows else None
    num_masks = batch if rows is None else len(rows)
    words = -(-vocab_size // 32) + spare_words
    bitmask = torch.randint(-(2**31), 2**31, (num_masks, words + 1), generator=generator).int()[:, :words]
    arguments = (base, base[:, :vocab_size], bitmask, rows)
    assert_agrees(whole(logits_bitmask.logits_bitmask), whole(twin.logits_bitmask), arguments, 0)  # type: ignore[arg-type]


def test_the_layout_is_xgrammars() -> None:
    logits = torch.zeros(2, 70)
    bitmask = torch.tensor([[1 << 5, -(2**31), 1 << 3]], dtype=torch.int32)
    twin.logits_bitmask(logits, bitmask, torch.tensor([1]))
    assert (logits[1] == 0).nonzero().flatten().tolist() == [5, 63, 67] and logits[1].min() == -math.inf
    assert not logits[0].any()
