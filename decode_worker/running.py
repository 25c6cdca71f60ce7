"""A sequence of the running batch, with the job that it came by."""

import time
from dataclasses import dataclass, field

from broker.intake import Claim
from engine.sequence import Sequence
from messages.job import DecodeJob, PrefillJob


@dataclass(slots=True, eq=False)
class Running:
    """A claimed job and its sequence."""

    claim: Claim[DecodeJob] | Claim[PrefillJob]
    sequence: Sequence
    is_suspect: bool = False  # workers died on it: its first step is made alone
    since_s: float = field(
        default_factory=time.perf_counter
    )  # when it came to the prefill, or the batch, of this worker

    @property
    def remaining_tokens(self) -> int:
        """Tokens whose KV is yet to be computed."""
        return self.sequence.num_tokens - self.sequence.num_computed_tokens

    @property
    def attempt(self) -> int:
        """With which it goes on elsewhere: the count begins anew, as tokens were published since it came."""
        return self.claim.attempt if self.is_suspect else 0

    def prefill_job(self, hop: int) -> PrefillJob:
        """The job by which prefill computes it again."""
        job = self.claim.job
        return PrefillJob(job.request_id, job.choice, hop, self.attempt, self.sequence.num_output_tokens)
