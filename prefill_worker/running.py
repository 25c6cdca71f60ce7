"""A prompt that is computed, or waits to be, with the job that it came by."""

import time
from dataclasses import dataclass, field

from broker.intake import Claim
from engine.continuation import sequence_of
from engine.sequence import Sequence
from messages import PrefillJob


@dataclass(slots=True, eq=False)
class Running:
    """A claimed job and its sequence. `block_table` is empty until it has started."""

    claim: Claim[PrefillJob]
    sequence: Sequence
    began_s: float = field(default_factory=time.perf_counter)

    @property
    def remaining_tokens(self) -> int:
        """Tokens whose KV is yet to be computed."""
        return self.sequence.num_tokens - self.sequence.num_computed_tokens


def running(claim: Claim[PrefillJob]) -> Running:
    """The claim with its sequence, which has no blocks yet."""
    return Running(claim, sequence_of(claim.taken.request, claim.taken.choice, claim.taken.events))
