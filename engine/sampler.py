"""The choice of the next token: a pure function of (logits, parameters, seed, token index).

Greedy rows take the largest logit, ties to the lowest id. Sampled rows take the largest logit / temperature + Gumbel
noise among the ids that top_p, top_k and min_p keep, which draws from the softmax of what is kept; the noise of an id
depends on (seed, token index, id) only (`philox.py`), so neither the batch, nor a row's place in it, nor the worker
matters. Knows no sequence and no model.

Nor does the device, given the same logits. What is kept is decided in float32 operations that IEEE 754 leaves one
result and in sums of integers. The noise takes two logarithms in float64, which libraries round apart by 1e-14 at most;
of the two best scores the gap is below e with probability below e (the gap of Gumbel-max draws has density
sum p (1 - p) <= 1 at zero), so another library chooses another token once in 1e13.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.penalties import SamplingRow, apply_penalties, asks_for_changes, changes_logits
from engine.philox import gumbel, random_words, random_words_at
from engine.truncation import kept_ids, truncates
from kernels.greedy import greedy
from messages.request import SamplingParams
from messages.token_event import TokenLogprob

__all__ = [
    "Sampled",
    "SamplingRow",
    "choice_seed",
    "is_greedy",
    "sample",
    "select_sampler",
    "takes_largest",
    "to_sampled",
]

MIN_TEMPERATURE = 1e-5  # below it a row is greedy
_NO_TOKEN = -1
_NOISE_ELEMENTS = 1 << 18  # rows are drawn in groups of about this many ids, so that the noise stays in the cache


@dataclass(frozen=True, slots=True)
class Sampled:
    """The token chosen for a row.

    `logprob` is the log of its probability after penalties and temperature (greedy: temperature 1); what top_p,
    top_k and min_p drop does not count back. When the row had no probabilities (a NaN or +inf logit, or no id left)
    `error` says so and there is no token: `token_id` is -1. The other rows of the batch are unharmed.
    """

    token_id: int
    logprob: float
    error: str = ""
    error_status: int = 500  # the HTTP status that an error becomes
    top: tuple[TokenLogprob, ...] = ()  # `engine/logprobs.py`, where they are asked for

    @classmethod
    def failed(cls, error: str, status: int = 500) -> "Sampled":
        """No token."""
        return cls(_NO_TOKEN, -math.inf, error, status)


Sampler = Callable[[Tensor, Sequence[SamplingRow]], list[Sampled]]


def select_sampler(device: torch.device) -> Sampler:
    """The sampler of logits on `device`: `sample`, or on a GPU the kernels that choose the same tokens."""
    if device.type == "cuda":
        from engine import gpu_sampler  # Triton, half a second, is not loaded where there is no GPU

        return gpu_sampler.sample
    return sample


def is_greedy(params: SamplingParams) -> bool:
    """Whether the largest logit is taken; temperature, top_p, top_k, min_p and the seed do not matter."""
    return not params.do_sample or params.temperature < MIN_TEMPERATURE


def takes_largest(params: SamplingParams, token_index: int) -> bool:
    """Whether the largest logit and its logprob are all that is wanted of the model's logits as they are."""
    return (
        is_greedy(params)
        and params.grammar is None
        and not params.num_top_logprobs
        and not asks_for_changes(params, token_index)
    )


def choice_seed(seed: int, choice: int) -> int:
    """The seed of one choice of a request whose choices share `seed`. Choice 0 keeps it. In 0..2**63-1."""
    if choice == 0:
        return seed
    mixed = (seed + choice * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF  # splitmix64, step and finalizer
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (mixed ^ (mixed >> 31)) >> 1


def sample(logits: Tensor, rows: Sequence[SamplingRow]) -> list[Sampled]:
    """The next token of every row. logits: [B, V], float32, not changed; row i belongs to `rows[i]`."""
    if logits.shape[0] != len(rows):
        raise ValueError(f"{logits.shape[0]} rows of logits for {len(rows)} sampling rows")
    plain = [index for index, row in enumerate(rows) if is_greedy(row.params) and not changes_logits(row)]
    sampled: dict[int, Sampled] = dict(zip(plain, _greedy(_pick(logits, plain).float()), strict=True))
    rest = [index for index in range(len(rows)) if index not in sampled]
    if rest:
        own = logits[rest].float()  # indexing copies them
        apply_penalties(own, [rows[index] for index in rest])
        certain = [place for place, index in enumerate(rest) if is_greedy(rows[index].params)]
        drawn = [place for place, index in enumerate(rest) if not is_greedy(rows[index].params)]
        sampled |= zip((rest[place] for place in certain), _greedy(_pick(own, certain)), strict=True)
        draws = _draw(_pick(own, drawn), [rows[rest[place]] for place in drawn])
        sampled |= zip((rest[place] for place in drawn), draws, strict=True)
    return [sampled[index] for index in range(len(rows))]


def _pick(logits: Tensor, places: list[int]) -> Tensor:
    """Those rows; the very tensor when it is all of them, which spares a copy."""
    return logits if len(places) == len(logits) else logits[places]


def _greedy(logits: Tensor) -> list[Sampled]:
    """The largest logit of each row; argmax takes the first of equals. logits: [R, V]."""
    if not len(logits):
        return []
    token_ids, logprobs = greedy(logits)
    return to_sampled(token_ids.tolist(), logprobs.tolist())


def _draw(logits: Tensor, rows: list[SamplingRow]) -> list[Sampled]:
    """One draw per row. logits: [R, V] after penalties, overwritten."""
    if not rows:
        return []
    device = logits.device
    temperatures = torch.tensor([row.params.temperature for row in rows], dtype=logits.dtype, device=device)
    seeds = torch.tensor([row.params.seed for row in rows], dtype=torch.int64, device=device)
    token_indexes = torch.tensor([row.token_index for row in rows], dtype=torch.int64, device=device)
    logits.div_(temperatures.unsqueeze(1))
    logprobs = torch.log_softmax(logits, dim=-1)
    token_ids = torch.zeros(len(rows), dtype=torch.int64, device=device)
    vocab_size = logits.shape[1]
    cut = [place for place, row in enumerate(rows) if truncates(row.params, vocab_size)]
    whole = [place for place, row in enumerate(rows) if not truncates(row.params, vocab_size)]
    if cut:
        where = torch.tensor(cut, device=device)
        params = [rows[place].params for place in cut]
        for kept in kept_ids(_pick(logits, cut), params):
            places = where[kept.rows]
            words = random_words_at(seeds[places], token_indexes[places], kept.ids, vocab_size)
            scores = kept.logits + gumbel(words)
            best = scores.masked_fill(~kept.mask, -math.inf).argmax(dim=-1, keepdim=True)
            token_ids[places] = kept.ids.gather(-1, best).squeeze(-1)
    group = max(1, _NOISE_ELEMENTS // vocab_size)
    for start in range(0, len(whole), group):
        some = whole[start : start + group]
        noise = gumbel(random_words(seeds[some], token_indexes[some], vocab_size))
        token_ids[some] = (logits[some] + noise).argmax(dim=-1)
    logprobs = logprobs.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)
    return to_sampled(token_ids.tolist(), logprobs.tolist())


def to_sampled(token_ids: Sequence[int], logprobs: Sequence[float]) -> list[Sampled]:
    """A logprob is not finite where the row holds a NaN or +inf or nothing finite: there nothing can be chosen."""
    return [
        Sampled(token_id, logprob)
        if math.isfinite(logprob)
        else Sampled.failed("the model's logits are not finite, or no token is allowed")
        for token_id, logprob in zip(token_ids, logprobs, strict=True)
    ]
