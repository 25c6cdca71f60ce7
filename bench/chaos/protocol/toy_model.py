"""A model without weights: the KV of a token names all tokens before it, and the next token follows from it alone.

A block that was given away and written by another is seen at once, and what every request must say is known before it
is asked. Knows sequences and a pool; knows no queue.
"""

from collections.abc import Sequence as Rows
from typing import Any

import torch

from engine.kv_pool import KVLayout, KVPool
from engine.model_runner import PrefillChunk
from engine.sampler import Sampled, choice_seed
from engine.sequence import Sequence
from engine.stopping import finish_reason
from messages.request import GenerationRequest
from messages.token_event import FinishReason

EOS_TOKEN_ID = 0
VOCAB_SIZE = 23
MODEL_HASH = "toy"
_MASK = (1 << 64) - 1
_START = 0x243F6A8885A308D3


class WrongBytes(AssertionError):
    """KV was read that is not the sequence's own."""


def layout(block_size: int) -> KVLayout:
    """8 bytes a token."""
    return KVLayout(num_layers=1, num_kv_heads=1, block_size=block_size, head_dim=1, dtype=torch.float32)


def chain(token_ids: Rows[int]) -> list[int]:
    """The KV of every token: 64 bits that no other prefix has."""
    value, values = _START, []
    for token_id in token_ids:
        value = ((value ^ (token_id + 1)) * 0x9E3779B97F4A7C15) & _MASK
        value ^= value >> 29
        values.append(value or 1)
    return values


def next_token(last: int, seed: int, index: int) -> int:
    """The token that follows KV `last`, at `index` of the output."""
    mixed = ((last ^ seed) * 0xBF58476D1CE4E5B9 + index * 0x94D049BB133111EB) & _MASK
    return (mixed >> 33) % VOCAB_SIZE


def answer(request: GenerationRequest, choice: int) -> tuple[list[int], FinishReason]:
    """All that the choice must say, and why it ends."""
    seed = choice_seed(request.sampling.seed, choice)
    prompt = request.prompt_token_ids
    sequence = Sequence("", list(prompt), len(prompt), request.sampling)
    while True:
        token_id = next_token(chain(sequence.token_ids)[-1], seed, sequence.num_output_tokens)
        reason = finish_reason(sequence, token_id, (EOS_TOKEN_ID,))
        sequence.token_ids.append(token_id)
        if reason is not None:
            return sequence.output_token_ids, reason


class ToyRunner:
    """In place of ModelRunner. Raises WrongBytes when a block does not hold what was written for its sequence."""

    eos_token_ids = (EOS_TOKEN_ID,)
    device_type = "cpu"

    def __init__(self, pool: KVPool) -> None:
        self._block_size = pool.layout.block_size
        data: Any = pool.tensor.view(-1).view(torch.uint8).numpy()
        self._words = memoryview(data).cast("Q")

    def prefill(self, chunks: list[PrefillChunk]) -> list[Sampled | None]:
        """See ModelRunner."""
        return [self._compute(chunk.sequence, chunk.num_tokens) for chunk in chunks]

    def decode(self, sequences: list[Sequence]) -> list[Sampled]:
        """See ModelRunner."""
        sampled = []
        for sequence in sequences:
            assert sequence.num_computed_tokens == sequence.num_tokens - 1, "a decode step computes one token"
            token = self._compute(sequence, 1)
            assert token is not None
            sampled.append(token)
        return sampled

    def score(self, sequence: Sequence) -> float:
        """See ModelRunner."""
        raise NotImplementedError

    def _compute(self, sequence: Sequence, num_tokens: int) -> Sampled | None:
        values = chain(sequence.token_ids)
        done = sequence.num_computed_tokens
        for position in range(done):
            if self._words[self._place(sequence, position)] != values[position]:
                raise WrongBytes(f"sequence {sequence.sequence_id}, token {position}: another's KV")
        for position in range(done, done + num_tokens):
            self._words[self._place(sequence, position)] = values[position]
        sequence.num_computed_tokens = done + num_tokens
        if sequence.num_computed_tokens < sequence.num_tokens:
            return None
        index = sequence.num_output_tokens
        return Sampled(next_token(values[-1], sequence.sampling.seed, index), -0.5)

    def _place(self, sequence: Sequence, position: int) -> int:
        block, place = divmod(position, self._block_size)
        return sequence.block_table[block] * self._block_size + place
