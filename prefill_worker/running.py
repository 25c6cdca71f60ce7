"""A prompt that is computed, or waits to be, with the job that it came by."""

import time
from asyncio import Future
from dataclasses import dataclass, field

from broker.intake import Claim
from engine.continuation import sequence_of
from engine.sequence import Sequence
from messages import PrefillJob, RequestError


@dataclass(slots=True, eq=False)
class Running:
    """A claimed job and its sequence. `block_table` is empty until it has started. It is computed once its grammar is
    open and its images are encoded; what the opening results in says why it cannot be."""

    claim: Claim[PrefillJob]
    sequence: Sequence
    opening: Future[RequestError | None] | None = None  # of its grammar and its images, if it has such
    began_s: float = field(default_factory=time.perf_counter)

    @property
    def remaining_tokens(self) -> int:
        """Tokens whose KV is yet to be computed."""
        return self.sequence.num_tokens - self.sequence.num_computed_tokens

    @property
    def is_open(self) -> bool:
        """Whether neither a grammar nor an image is waited for."""
        return self.opening is None or (self.opening.done() and self.opening.result() is None)


def running(claim: Claim[PrefillJob]) -> Running:
    """The claim with its sequence, which has no blocks yet."""
    return Running(claim, sequence_of(claim.taken.request, claim.taken.choice, claim.taken.events))
