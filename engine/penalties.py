"""What a request's parameters do to its logits before a token is chosen, in LightLLM's order.

logit_bias, allowed_token_ids and a grammar's bits; repetition, frequency and presence penalty over the seen tokens; the
length penalty and the minimum length on the EOS ids. Knows neither temperature nor randomness.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.logits_bitmask import logits_bitmask
from messages.request import SamplingParams

MASKED_EOS_LOGIT = -1e7  # LightLLM's; finite, so that a row whose only allowed token is EOS still has a choice
_MAX_LOG_GROWTH = math.log(1e30)  # keeps factor ** length inside float32


@dataclass(frozen=True, slots=True)
class SamplingRow:
    """Who the next token is for. The token's index is `len(output_token_ids)`."""

    params: SamplingParams
    prompt_token_ids: Sequence[int]
    output_token_ids: Sequence[int]
    eos_token_ids: Sequence[int]
    allowed_bits: bytes | None = None  # by a grammar, as in kernels/logits_bitmask.py, little-endian; None: all

    @property
    def token_index(self) -> int:
        """Place of the next token in the output."""
        return len(self.output_token_ids)


def changes_logits(row: SamplingRow) -> bool:
    """Whether `apply_penalties` would do anything to this row."""
    return row.allowed_bits is not None or asks_for_changes(row.params, row.token_index)


def asks_for_changes(params: SamplingParams, token_index: int) -> bool:
    """Whether `apply_penalties` would do anything to such a row, whose grammar has nothing against any token."""
    return bool(
        params.logit_bias
        or params.allowed_token_ids
        or counts_tokens(params)
        or eos_growth(params, token_index)
        or masks_eos(params, token_index)
    )


def apply_penalties(logits: Tensor, rows: Sequence[SamplingRow]) -> None:
    """Edits `logits` [R, V] float32 in place; row i belongs to `rows[i]`. Ids outside 0..V-1 are left out."""
    vocab_size = logits.shape[1]
    for logit_row, row in zip(logits, rows, strict=True):
        _apply_bias(logit_row, row.params, vocab_size)
        if row.allowed_bits is not None:
            logits_bitmask(logit_row.unsqueeze(0), bitmask_of([row.allowed_bits]).to(logits.device))
    _apply_token_penalties(logits, rows)
    for logit_row, row in zip(logits, rows, strict=True):
        _apply_eos_rules(logit_row, row, vocab_size)


def bitmask_of(rows: Sequence[bytes]) -> Tensor:
    """[M, W] int32 from the bits of M rows of one vocabulary."""
    return torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.int32).view(len(rows), -1)


def _apply_bias(logit_row: Tensor, params: SamplingParams, vocab_size: int) -> None:
    bias = {token_id: value for token_id, value in params.logit_bias.items() if 0 <= token_id < vocab_size}
    if bias:
        token_ids = torch.tensor(list(bias), device=logit_row.device)
        logit_row[token_ids] += torch.tensor(list(bias.values()), dtype=logit_row.dtype, device=logit_row.device)
    if params.allowed_token_ids:
        allowed = [token_id for token_id in params.allowed_token_ids if 0 <= token_id < vocab_size]
        token_ids = torch.tensor(allowed, dtype=torch.int64, device=logit_row.device)
        kept = logit_row[token_ids]
        logit_row.fill_(-math.inf)
        logit_row[token_ids] = kept


def _apply_token_penalties(logits: Tensor, rows: Sequence[SamplingRow]) -> None:
    """One gather and one scatter for the seen tokens of every row: entries (row, token id, count)."""
    entries: list[tuple[int, int]] = []
    scales: list[tuple[float, float]] = []  # repetition penalty, what is subtracted
    for row_index, row in enumerate(rows):
        params = row.params
        if not counts_tokens(params):
            continue
        counts = Counter(row.output_token_ids)
        if params.input_penalty:
            counts.update(row.prompt_token_ids)
        for token_id, count in counts.items():
            entries.append((row_index, token_id))
            scales.append((params.repetition_penalty, count * params.frequency_penalty + params.presence_penalty))
    if not entries:
        return
    row_ids, token_ids = torch.tensor(entries, device=logits.device).unbind(1)
    repetition, subtracted = torch.tensor(scales, dtype=logits.dtype, device=logits.device).unbind(1)
    seen = logits[row_ids, token_ids]
    logits[row_ids, token_ids] = torch.where(seen > 0, seen / repetition, seen * repetition) - subtracted


def _apply_eos_rules(logit_row: Tensor, row: SamplingRow, vocab_size: int) -> None:
    growth = eos_growth(row.params, row.token_index)
    masks = masks_eos(row.params, row.token_index)
    eos_token_ids = sorted({token_id for token_id in row.eos_token_ids if 0 <= token_id < vocab_size})
    if not eos_token_ids or not (growth or masks):
        return
    token_ids = torch.tensor(eos_token_ids, device=logit_row.device)
    logit = logit_row[token_ids]
    if growth:
        # An EOS that is not allowed stays at -inf: there the sum would be -inf + inf.
        logit = torch.where(torch.isinf(logit), logit, logit + logit.abs() * growth)
    if masks:
        logit = logit.clamp(max=MASKED_EOS_LOGIT)
    logit_row[token_ids] = logit


def counts_tokens(params: SamplingParams) -> bool:
    """Whether the seen tokens matter."""
    return params.repetition_penalty != 1.0 or params.frequency_penalty != 0.0 or params.presence_penalty != 0.0


def eos_growth(params: SamplingParams, token_index: int) -> float:
    """factor ** (tokens beyond start) - 1; 0.0 when the length penalty is off or has not begun."""
    start, factor = params.exponential_decay_length_penalty
    beyond = token_index - start
    if factor == 1.0 or beyond <= 0:
        return 0.0
    return math.expm1(min(beyond * math.log(factor), _MAX_LOG_GROWTH))


def masks_eos(params: SamplingParams, token_index: int) -> bool:
    """While True an EOS would come before the min_new_tokens-th token."""
    return token_index < params.min_new_tokens - 1
