"""Every Redis key of pdq, each as a method. This file knows no Redis and no message.

All keys under one prefix share a hash tag, the prefix itself: scripts touch a request's record, the queues and the load
of the cluster in one step, so a Redis Cluster has to keep them on one node. What comes after the prefix is the request
id in braces for a request's keys and a plain word for the others, so that no request id can spell one of those.
"""

from dataclasses import dataclass
from typing import Literal

from messages import Priority, Role

GROUP = "workers"  # the one consumer group of each queue

# Where jobs wait: one queue per role, and one of the PrefillJobs that decode workers compute themselves.
LOCAL: Literal["local"] = "local"
QueueName = Role | Literal["local"]


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys under one name (PDQ_REDIS__KEY_PREFIX); two clusters on one Redis differ in it."""

    name: str

    @property
    def prefix(self) -> str:
        """The first part of every key, with the name as its hash tag."""
        return f"{{{self.name}}}"

    def queue(self, name: QueueName, priority: Priority = Priority.NORMAL) -> str:
        """Stream of the jobs of one class that wait there."""
        stream = f"{self.prefix}:{name}_queue"
        return stream if priority is Priority.NORMAL else f"{stream}:{priority.value}"

    def queues(self, name: QueueName) -> list[str]:
        """The streams of every class, the most urgent first."""
        return [self.queue(name, priority) for priority in Priority]

    def prefill_queue(self) -> str:
        """Stream of the PrefillJobs of normal priority."""
        return self.queue(Role.PREFILL)

    def decode_queue(self) -> str:
        """Stream of the DecodeJobs of normal priority."""
        return self.queue(Role.DECODE)

    def bids(self) -> str:
        """Hash worker_id -> the Bid of a decode worker that waits for a prompt to prefill itself."""
        return f"{self.prefix}:bids"

    def record(self, request_id: str) -> str:
        """Hash: the request, and per choice its hop, epoch and end."""
        return f"{self.prefix}:{{{request_id}}}:record"

    def tokens(self, request_id: str, choice: int) -> str:
        """Stream of one choice's TokenEvents; the entry of index i has the id `i+1-0`."""
        return f"{self.prefix}:{{{request_id}}}:tokens:{choice}"

    def images(self, request_id: str) -> str:
        """Hash sha256 -> bytes of the images of the request's prompt; it goes when the request ends."""
        return f"{self.prefix}:{{{request_id}}}:images"

    def active_sizes(self) -> str:
        """Hash `request_id:choice` -> "prompt_tokens max_new_tokens ignore_eos num_images" per unfinished choice."""
        return f"{self.prefix}:active_sizes"

    def active_phases(self) -> str:
        """Hash `request_id:choice` -> Phase of every unfinished choice."""
        return f"{self.prefix}:active_phases"

    def reader_leases(self) -> str:
        """Sorted set of every unfinished request_id by the Redis time (ms) until which it may go without a reader."""
        return f"{self.prefix}:reader_leases"

    def relay(self, api_id: str) -> str:
        """Stream of the accepted events that one API process waits for; also a prefix, with an empty `api_id`."""
        return f"{self.prefix}:relay:{api_id}"

    def inbox(self, worker_id: str) -> str:
        """Stream of the Releases for one worker."""
        return f"{self.prefix}:inbox:{worker_id}"

    def workers(self) -> str:
        """Hash worker_id -> WorkerStatus."""
        return f"{self.prefix}:workers"

    def worker_leases(self) -> str:
        """Sorted set of worker_id by the Redis time (ms) at which its lease ends."""
        return f"{self.prefix}:worker_leases"

    def pulse(self) -> str:
        """Hash: when any worker beat last, and until when nothing is reclaimed (ms of Redis's clock)."""
        return f"{self.prefix}:pulse"

    def cancels(self) -> str:
        """Pub/sub channel of `request_id:choice` ended from the API's side."""
        return f"{self.prefix}:cancels"

    def key_meters(self, key_id: str) -> str:
        """Hash of one API key: for each limit per minute, the Redis time (ms) at which it is unused again."""
        return f"{self.prefix}:key:{key_id}:meters"

    def key_leases(self, key_id: str) -> str:
        """Sorted set of one API key's requests in flight by the Redis time (ms) at which to look at them again."""
        return f"{self.prefix}:key:{key_id}:leases"

    def key_records(self, key_id: str) -> str:
        """Hash of one API key's requests in flight -> key of their record, once they have one."""
        return f"{self.prefix}:key:{key_id}:records"

    # -- batches: docs/batches.md ------------------------------------------------------------------------------------

    def celery(self) -> str:
        """First part of every key and channel that Celery uses."""
        return f"{self.prefix}:batches:celery:"

    def stored_file(self, file_id: str) -> str:
        """A StoredFile."""
        return f"{self.prefix}:batches:file:{file_id}"

    def files_of(self, owner: str) -> str:
        """Sorted set of one API key's file_ids by when they were made (ms)."""
        return f"{self.prefix}:batches:files_of:{owner}"

    def file_ends(self) -> str:
        """Sorted set of the file_ids that expire by when they do (ms)."""
        return f"{self.prefix}:batches:file_ends"

    def batch(self, batch_id: str) -> str:
        """Hash: the Batch, and how far it is."""
        return f"{self.prefix}:batches:batch:{batch_id}"

    def batches_of(self, owner: str) -> str:
        """Sorted set of one API key's batch_ids by when they were made (ms)."""
        return f"{self.prefix}:batches:of:{owner}"

    def open_batches_of(self, owner: str) -> str:
        """Those of `batches_of` that have not ended."""
        return f"{self.prefix}:batches:open_of:{owner}"

    def open_batches(self) -> str:
        """Sorted set of every batch_id that has not ended by when it was made (ms)."""
        return f"{self.prefix}:batches:open"

    def ended_batches(self) -> str:
        """Sorted set of every other batch_id by when it ended (ms)."""
        return f"{self.prefix}:batches:ended"

    def shard_rows(self, batch_id: str, shard: int) -> str:
        """Hash line -> what became of it, of the lines of a shard that is not over."""
        return f"{self.prefix}:batches:batch:{batch_id}:rows:{shard}"

    def done_shards(self, batch_id: str) -> str:
        """Set of the shards whose rows are in the file store."""
        return f"{self.prefix}:batches:batch:{batch_id}:done"

    def step_lease(self, batch_id: str, step: str) -> str:
        """Who works on one step of a batch, for as long as the key lives."""
        return f"{self.prefix}:batches:batch:{batch_id}:lease:{step}"

    def step_sent(self, batch_id: str, step: str) -> str:
        """There while a step's task is on its way to a worker."""
        return f"{self.prefix}:batches:batch:{batch_id}:sent:{step}"

    def batch_workers(self) -> str:
        """Sorted set of the batch workers by the Unix time (ms) until which they are taken for alive."""
        return f"{self.prefix}:batches:workers"

    def webhooks(self) -> str:
        """Sorted set of batch_ids whose end is still to be told, by when to try (ms)."""
        return f"{self.prefix}:batches:webhooks"

    def batch_totals(self) -> str:
        """Hash of what all batches came to so far: `lines:OUTCOME`, `batches:STATUS`, `webhooks:OUTCOME`."""
        return f"{self.prefix}:batches:totals"
