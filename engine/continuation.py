"""From what the record says to a sequence, and from a sampled token to what the stream says.

A request that starts and one that goes on after its worker died are the same thing: prompt + published tokens. Knows
messages and sequences; knows no Redis.
"""

from collections.abc import Container, Sequence

from msgspec import structs

from engine.sampler import Sampled, choice_seed
from engine.sequence import Sequence as EngineSequence
from engine.stopping import finish_reason
from messages import FinishReason, GenerationRequest, TokenEvent


def sequence_of(request: GenerationRequest, choice: int, published: Sequence[TokenEvent]) -> EngineSequence:
    """The sequence of one choice, as far as it was published. Nothing of it is computed, and it holds no blocks."""
    token_ids = [event.token_id for event in published if event.token_id is not None]
    return EngineSequence(
        sequence_id=f"{request.request_id}:{choice}",
        token_ids=[*request.prompt_token_ids, *token_ids],
        num_prompt_tokens=len(request.prompt_token_ids),
        sampling=structs.replace(request.sampling, seed=choice_seed(request.sampling.seed, choice)),
        images=request.images,
    )


def event_of(sequence: EngineSequence, sampled: Sampled, eos_token_ids: Container[int]) -> TokenEvent:
    """The next token of `sequence` (not yet appended) as its stream carries it; terminal when it ends the sequence."""
    if sampled.error:
        return TokenEvent(finish_reason=FinishReason.ERROR, error=sampled.error, error_status=sampled.error_status)
    reason = finish_reason(sequence, sampled.token_id, eos_token_ids)
    if sequence.num_output_tokens and not sampled.top:
        return TokenEvent(sampled.token_id, sampled.logprob, reason)
    if sequence.num_output_tokens:
        return TokenEvent(sampled.token_id, sampled.logprob, reason, top=sampled.top)
    # With its first token, in one entry: who goes on after it has nothing of the prompt left to tell.
    return TokenEvent(
        sampled.token_id,
        sampled.logprob,
        reason,
        top=sampled.top,
        prompt_logprobs=tuple(sequence.prompt_logprobs),
        num_cached_tokens=sequence.num_cached_tokens,
    )
