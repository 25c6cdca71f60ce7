"""Logprobs that a client asked for beyond that of the chosen token: the likeliest ids, and those of prompt tokens.

Computed for the rows that ask and for no others; nothing here is reached in a step of which nobody does. Knows logits
and sequences; knows no model. All figures of one place come from one log-softmax, so that equal tokens have equal ones.
"""

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.penalties import SamplingRow, apply_penalties
from engine.prefill_rows import PrefillChunk
from engine.sampler import is_greedy
from engine.sequence import Sequence
from messages.token_event import PromptLogprob, TokenLogprob


@dataclass(frozen=True, slots=True)
class RowLogprobs:
    """One row's: `row` [V] of all ids, `top` of the likeliest."""

    row: Tensor
    top: tuple[TokenLogprob, ...]


def top_logprobs(logits: Tensor, rows: Rows[SamplingRow]) -> list[RowLogprobs]:
    """After penalties and temperature, as the logprob of a sampled token is; greedy rows as with temperature 1.

    logits: [R, V], overwritten where they are float32; row i belongs to `rows[i]`.
    """
    logits = logits.float()
    apply_penalties(logits, rows)
    temperatures = [[1.0 if is_greedy(row.params) else row.params.temperature] for row in rows]
    logits /= torch.tensor(temperatures, device=logits.device)
    logprobs = torch.log_softmax(logits, dim=-1)
    tops = _likeliest(logprobs, [row.params.num_top_logprobs for row in rows])
    return [RowLogprobs(row, top) for row, top in zip(logprobs, tops, strict=True)]


class PromptListing:
    """The prompt tokens of one prefill step whose logprobs are wanted. `take` is to be given the logits of `places`, in
    their order, in pieces of any size; what comes of it is written to the sequences."""

    def __init__(self, chunks: Rows[PrefillChunk]) -> None:
        """Before the chunks are computed."""
        self.places: list[int] = []  # among the step's packed tokens: those that come before a listed one
        self._targets: list[tuple[Sequence, int]] = []  # the sequence, and the id whose logprob it is
        first = 0
        for chunk in chunks:
            if chunk.sequence.lists_prompt:
                self._add(chunk, first)
            first += chunk.num_tokens

    def take(self, logits: Tensor) -> None:
        """logits: [N, V] of the next N places."""
        targets, self._targets = self._targets[: len(logits)], self._targets[len(logits) :]
        logprobs = torch.log_softmax(logits.float(), dim=-1)
        ids = torch.tensor([[token_id] for _, token_id in targets], device=logits.device)
        own = logprobs.gather(-1, ids).squeeze(-1).tolist()
        tops = _likeliest(logprobs, [sequence.sampling.num_prompt_logprobs or 0 for sequence, _ in targets])
        for (sequence, _), logprob, top in zip(targets, own, tops, strict=True):
            sequence.prompt_logprobs.append(PromptLogprob(logprob, top))

    def _add(self, chunk: PrefillChunk, first: int) -> None:
        sequence, begin = chunk.sequence, chunk.sequence.num_computed_tokens
        del sequence.prompt_logprobs[begin:]  # of a computation that was broken off
        assert len(sequence.prompt_logprobs) == begin, "a listed prompt is computed from its beginning"
        # The last token is followed by what is generated.
        for position in range(begin, min(begin + chunk.num_tokens, sequence.num_prompt_tokens - 1)):
            self.places.append(first + position - begin)
            self._targets.append((sequence, sequence.token_ids[position + 1]))


def _likeliest(logprobs: Tensor, counts: Rows[int]) -> list[tuple[TokenLogprob, ...]]:
    """Of each row [V] its `counts[i]` largest, the largest first."""
    most = min(max(counts), logprobs.shape[1])
    if not most:
        return [()] * len(counts)
    values, ids = logprobs.topk(most, dim=-1)
    return [
        tuple(zip(row_ids[:count], row_values[:count], strict=True))
        for row_ids, row_values, count in zip(ids.tolist(), values.tolist(), counts, strict=True)
    ]
