"""A sequence of the running batch, with the job that it came by."""

from dataclasses import dataclass

from broker.intake import Claim
from engine.sequence import Sequence
from messages import DecodeJob, PrefillJob


@dataclass(slots=True, eq=False)
class Running:
    """A claimed job and its sequence."""

    claim: Claim[DecodeJob]
    sequence: Sequence
    is_suspect: bool = False  # workers died on it: its first step is made alone

    @property
    def attempt(self) -> int:
        """With which it goes on elsewhere: the count begins anew, as tokens were published since it came."""
        return self.claim.attempt if self.is_suspect else 0

    def prefill_job(self, hop: int) -> PrefillJob:
        """The job by which prefill computes it again."""
        return PrefillJob(self.claim.job.request_id, self.claim.job.choice, hop, self.attempt)
