"""What a step gave to each of its sequences, until it is published: they go on with it before others have read it.

Pure: from sampled tokens to what the streams will say. Knows no Redis, no model and no clock.
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass

from broker.choice import Append
from decode_worker.running import Running
from engine.continuation import event_of
from engine.sampler import Sampled


@dataclass(frozen=True, slots=True, eq=False)
class Output:
    """A sequence and its next event."""

    one: Running
    append: Append

    @property
    def is_last(self) -> bool:
        """Whether the sequence ends with it."""
        return self.append.event.finish_reason is not None


def take_over(batch: Sequence[Running], sampled: Sequence[Sampled], eos_token_ids: Container[int]) -> list[Output]:
    """What is to be published of the step; the sequences that go on have their token."""
    outputs = []
    for one, token in zip(batch, sampled, strict=True):
        sequence = one.sequence
        event = event_of(sequence, token, eos_token_ids)
        outputs.append(Output(one, one.claim.next_event(event, sequence.num_output_tokens)))
        if event.finish_reason is None:
            sequence.token_ids.append(token.token_id)
    return outputs
