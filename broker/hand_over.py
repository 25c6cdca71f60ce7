"""A choice on its way from one worker to the next: what its giver says, and the script that does it.

Knows jobs and entries; knows no worker, and not what is handed over with a job.
"""

from dataclasses import dataclass

from broker.choice import member_of
from broker.job_queue import QueueEntry
from broker.keys import GROUP, Keys
from broker.scripts import Call, load_script
from messages.job import DecodeJob, Phase, PrefillJob
from messages.wire import encode
from messages.worker_status import Role


@dataclass(frozen=True, slots=True)
class HandOver:
    """`job` (of a higher hop) for the choice of `entry`, which its giver owns by `epoch`."""

    entry: QueueEntry[PrefillJob] | QueueEntry[DecodeJob]
    epoch: int
    job: PrefillJob | DecodeJob
    phase: Phase
    num_events: int = 0  # that the choice's stream has at least; else it is refused

    def __post_init__(self) -> None:
        job, before = self.job, self.entry.job
        assert job.hop > before.hop, "a hand-over raises the hop"
        assert (job.request_id, job.choice) == (before.request_id, before.choice)


def hand_over_call(keys: Keys, given: HandOver) -> Call:
    """Put the job, give up owning the choice, acknowledge the entry; the script answers 1, or 0 when it refuses."""
    entry, job = given.entry, given.job
    return Call(
        load_script("hand_over"),
        [
            keys.record(job.request_id),
            keys.active_phases(),
            keys.queue(entry.queue, entry.priority),
            keys.queue(Role.PREFILL if isinstance(job, PrefillJob) else Role.DECODE, entry.priority),
            keys.tokens(job.request_id, job.choice),
        ],
        [
            GROUP,
            job.choice,
            member_of(job.request_id, job.choice),
            given.epoch,
            entry.job.hop,
            job.hop,
            given.phase.value,
            encode(job),
            entry.entry_id,
            given.num_events,
        ],
    )
