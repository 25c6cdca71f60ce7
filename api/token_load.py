"""How loaded the cluster is: the three figures of /token_load.

Pure. The formulas, with their reasons, are in docs/token_load.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from broker.choice import SequenceLoad
from messages.job import Phase

EXPECTED_GROWTH = 1.1  # a sequence is expected to grow to this multiple of its present output ...
LEAST_EXPECTED_TOKENS = 1024  # ... or to this many tokens, whichever is more
ADDED_OUTPUT_TOKENS = 6  # LightLLM's ADDED_OUTPUT_LEN
FULL = 1.0  # what a cluster without capacity reads


@dataclass(frozen=True, slots=True)
class TokenLoad:
    """Shares of the capacity; above 1 when more is asked for than fits."""

    current_load: float
    logical_max_load: float
    dynamic_max_load: float


def token_load(loads: Sequence[SequenceLoad], capacity_tokens: int) -> TokenLoad:
    """The three figures over the sequences in the cluster. `capacity_tokens`: KV tokens of the live decode workers.

    held    = sum over decoding sequences of (prompt + output - 1)
    current_load     = held / capacity
    dynamic_max_load = (past_future_peak(decoding) + sum over waiting of (prompt + expected_output)) / capacity
    logical_max_load = sum over all of (prompt + max_new_tokens) / capacity

    "Decoding" is in a running batch; everything else, from queued for prefill to queued for decode, is "waiting".
    """
    if capacity_tokens <= 0:
        return TokenLoad(FULL, FULL, FULL)
    decoding = [load for load in loads if load.phase == Phase.DECODING]
    waiting = [load for load in loads if load.phase != Phase.DECODING]
    # The last token's KV is computed by the next step, hence the -1.
    held = sum(max(0, load.prompt_tokens + load.output_tokens - 1) for load in decoding)
    dynamic = past_future_peak(decoding) + sum(load.prompt_tokens + expected_output(load) for load in waiting)
    logical = sum(load.prompt_tokens + load.max_new_tokens for load in loads)
    return TokenLoad(held / capacity_tokens, logical / capacity_tokens, dynamic / capacity_tokens)


def expected_output(load: SequenceLoad) -> int:
    """M = max_new_tokens if ignore_eos else min(max_new_tokens, max(int(1.1 * output), 1024))"""
    if load.ignore_eos:
        return load.max_new_tokens
    return min(load.max_new_tokens, max(int(EXPECTED_GROWTH * load.output_tokens), LEAST_EXPECTED_TOKENS))


def past_future_peak(decoding: Sequence[SequenceLoad]) -> int:
    """Most tokens the running sequences will hold at once, none joining (the Past-Future estimate).

    a_i = prompt + output + 1                    tokens held after the next step
    b_i = max(0, M - output - 1) + 6             steps left after it
    sorted by b, largest first: peak = max over k of (k * b_(k) + sum of a_(1..k)); 0 for none
    """
    ends = sorted(
        (
            (
                max(0, expected_output(load) - load.output_tokens - 1) + ADDED_OUTPUT_TOKENS,
                load.prompt_tokens + load.output_tokens + 1,
            )
            for load in decoding
        ),
        reverse=True,
    )
    peak = held = 0
    for rank, (steps_left, tokens) in enumerate(ends, 1):
        held += tokens
        peak = max(peak, rank * steps_left + held)
    return peak
