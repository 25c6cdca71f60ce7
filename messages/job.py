"""The jobs on the queues, and the phases that a sequence goes through by them."""

from enum import StrEnum

import msgspec

from messages.kv_transfer import KVHandle


class Phase(StrEnum):
    """Where a sequence is, as /token_load and `pdq status` see it."""

    PREFILL_QUEUED = "prefill_queued"
    PREFILLING = "prefilling"
    DECODE_QUEUED = "decode_queued"  # its KV is offered
    DECODING = "decoding"


class PrefillJob(msgspec.Struct, frozen=True, array_like=True):
    """API or decode worker -> prefill queue: compute the KV of prompt + published tokens, and the next token."""

    request_id: str
    choice: int
    hop: int  # how often the sequence changed queues; a job of an older hop is stale
    attempt: int = 0  # how many workers died or failed on it without progress
    num_published: int = 0  # tokens in the stream when the job was made


class DecodeJob(msgspec.Struct, frozen=True, array_like=True):
    """Prefill worker, or a decode worker that stops -> decode queue: the KV of all tokens but the last published one
    is offered."""

    request_id: str
    choice: int
    hop: int
    kv_handle: KVHandle
    attempt: int = 0
