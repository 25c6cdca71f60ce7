"""What a step computes, complete and in lists, so that every rank of a worker can be told the same."""

import msgspec

from engine.decode_rows import DecodeRows
from engine.prefill_rows import PrefillRows


class PrefillStep(msgspec.Struct, frozen=True, tag=True):
    """Compute the chunks; logits are wanted of those whose place is in `ends`, and of the packed tokens in `listed`, a
    few at a time."""

    rows: PrefillRows
    ends: list[int]
    listed: list[int] = []


class DecodeStep(msgspec.Struct, frozen=True, tag=True):
    """Compute one token of every row; logits are wanted of all."""

    rows: DecodeRows


class ScoreStep(msgspec.Struct, frozen=True, tag=True):
    """Compute the chunks; the reward head's output is wanted of all."""

    rows: PrefillRows


Step = PrefillStep | DecodeStep | ScoreStep
