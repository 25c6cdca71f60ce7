"""What the rows of one batch want of their next tokens, as the kernels of `logit_edit.py` and `sampling.py` read it."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class SamplingInputs:
    """What the rows of one batch want. [B] each, on the logits' device; a greedy row has temperature 1 and no limits.

    The edits are entries (row, id), each pair once; `edits` [5, E] float32 is what happens to the logit, in this order:
    added; repetition penalty; subtracted; growth by that much of its size; ceiling (inf: none).
    """

    cuts: bool  # whether any row has a limit
    seeds: Tensor  # int64
    token_indexes: Tensor  # int64
    top_p: Tensor  # float64; 1: no limit
    temperatures: Tensor  # float32
    lowest: Tensor  # float32: log(min_p); -inf: no limit
    top_k: Tensor  # int32; the vocabulary's size: no limit
    draws: Tensor  # int32: 0 where the largest logit is taken
    only_edited: Tensor  # int32: 1 where ids without an edit are not allowed
    edit_rows: Tensor  # [E] int32
    edit_ids: Tensor  # [E] int32
    edits: Tensor  # [5, E] float32
