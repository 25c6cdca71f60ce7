"""top_p, top_k and min_p: which ids of a row may be drawn.

Ids stand in order of falling logit, equals by rising id. An id is kept while the probability before it is at most
top_p, its rank is below top_k and its probability is at least min_p of the largest. Most rows keep few ids, so only the
largest are sorted, and more of them only for the rows that turn out to keep more. How many a row gets sorted depends on
that row alone. Probabilities are integers (`kernels/softmax_mass.py`), whose sums round nowhere, so that every device
keeps the same ids.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.softmax_mass import softmax_mass
from messages.request import SamplingParams

# Ids sorted at first and, where those do not settle it, next; then all. Sorting 49152 costs 7 ms a row, 512 costs 0.3.
NUM_CANDIDATES = (512, 8192)
_MAX_ELEMENTS = 1 << 18  # worked on at once, so that they stay in the cache
_NO_LIMIT = torch.iinfo(torch.int64).max


@dataclass(frozen=True, slots=True)
class KeptIds:
    """Some rows' ids that may be drawn: `ids` [R, K] int64 where `mask` [R, K]; `logits` [R, K] are theirs.

    `rows` [R] int64 says which rows of the logits these are.
    """

    rows: Tensor
    ids: Tensor
    logits: Tensor
    mask: Tensor


def kept_ids(logits: Tensor, params: Sequence[SamplingParams]) -> Iterator[KeptIds]:
    """The kept ids; each row comes once. logits: [R, V] float32 after temperature."""
    vocab_size = logits.shape[1]
    device = logits.device
    mass_limits = _mass_limits(logits, params)
    top_k = torch.tensor([row.top_k if row.top_k > 0 else vocab_size for row in params], device=device).unsqueeze(1)
    lowest = torch.tensor([lowest_logit(row) for row in params], device=device).unsqueeze(1)
    rows = torch.arange(len(params), device=device)
    for count in (*(count for count in NUM_CANDIDATES if count < vocab_size), vocab_size):
        unsettled: list[Tensor] = []
        for some in torch.split(rows, max(1, _MAX_ELEMENTS // count)):
            values, ids = _largest(logits[some], count)
            masses = softmax_mass(values, values[:, :1])
            before = masses.cumsum(dim=-1) - masses
            ranks = torch.arange(count, device=device)
            mask = (before <= mass_limits[some]) & (ranks < top_k[some]) & (values >= values[:, :1] + lowest[some])
            # Ids equal to the last candidate may be missing here, so a row that keeps such a one is not settled.
            settled = (~(mask & (values <= values[:, -1:]))).all(dim=1) | (count == vocab_size)
            yield KeptIds(some[settled], ids[settled], values[settled], mask[settled])
            unsettled.append(some[~settled])
        rows = torch.cat(unsettled)
        if not len(rows):
            return


def truncates(params: SamplingParams, vocab_size: int) -> bool:
    """Whether there is a limit at all."""
    return params.top_p < 1.0 or 0 < params.top_k < vocab_size or params.min_p > 0.0


def lowest_logit(params: SamplingParams) -> float:
    """How far below the largest logit a kept one may be, after temperature: log(min_p)."""
    return math.log(params.min_p) if params.min_p > 0.0 else -math.inf


def _mass_limits(logits: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """top_p of each row's whole mass, [R, 1] int64. One product of float64, rounded down."""
    limits = torch.full((len(params), 1), _NO_LIMIT, device=logits.device)
    limited = [place for place, row in enumerate(params) if row.top_p < 1.0]
    group = max(1, _MAX_ELEMENTS // logits.shape[1])
    for start in range(0, len(limited), group):
        some = limited[start : start + group]
        own = logits[some]
        total = softmax_mass(own, own.amax(dim=-1, keepdim=True)).sum(dim=-1, keepdim=True)
        top_p = torch.tensor([params[place].top_p for place in some], dtype=torch.float64, device=logits.device)
        limits[some] = (total.double() * top_p.unsqueeze(1)).long()
    return limits


def _largest(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest logits and their ids, [R, count], equals by rising id (topk alone leaves their order open)."""
    if count == logits.shape[1]:
        ordered = torch.sort(logits, dim=-1, descending=True, stable=True)
        return ordered.values, ordered.indices
    ids = logits.topk(count, dim=-1, sorted=False).indices.sort(dim=-1).values
    ordered = torch.sort(logits.gather(-1, ids), dim=-1, descending=True, stable=True)
    return ordered.values, ids.gather(-1, ordered.indices)
