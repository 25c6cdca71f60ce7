"""When a sequence ends by its token ids alone. Stop sequences are text and are found where text is made, in the API."""

from collections.abc import Container

from engine.sequence import Sequence
from messages.token_event import FinishReason


def finish_reason(sequence: Sequence, token_id: int, eos_token_ids: Container[int]) -> FinishReason | None:
    """Why `sequence` ends with its next token `token_id` (not yet appended); None while it goes on."""
    # Where there is a grammar, EOS is allowed where its text may end, and nothing comes after it.
    if token_id in eos_token_ids and (not sequence.sampling.ignore_eos or sequence.sampling.grammar is not None):
        return FinishReason.STOP
    if sequence.num_output_tokens + 1 >= sequence.sampling.max_new_tokens:
        return FinishReason.LENGTH
    return None
