"""What a worker says of itself, in every heartbeat."""

from enum import StrEnum

import msgspec

from messages.kv_transfer import PoolExport, TransferCount


class Role(StrEnum):
    """What a worker process is."""

    PREFILL = "prefill"
    DECODE = "decode"


class WorkerState(StrEnum):
    """Where a worker process is in its life."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"


class FinishedPhase(msgspec.Struct, frozen=True, array_like=True):
    """A part of one sequence's life that a worker has just seen end. Nothing of its text."""

    number: int  # counted from 1 by the worker; a reader takes each once
    request_id: str
    choice: int
    name: str  # as its span is named: queue prefill, prefill, offer, queue decode, kv_pull, decode, reclaimed...
    ended_ms: int  # Unix time, by the worker's host
    took_ms: float


class WorkerStatus(msgspec.Struct, frozen=True, array_like=True):
    """A worker's heartbeat."""

    worker_id: str
    role: Role
    state: WorkerState
    host: str
    pid: int
    started_ms: int  # Unix time
    model_hash: str = ""
    capacity_tokens: int = 0  # KV tokens the pool holds
    block_size: int = 0
    num_blocks: int = 0
    free_blocks: int = 0  # evictable prefix-cache blocks included
    num_running: int = 0
    idle_s: float = 0.0  # seconds since the loop last came round
    detail: str = ""  # e.g. "loading weights 43 %"
    export: PoolExport | None = None  # its pool, where others can pull from it
    transfers: dict[str, TransferCount] = {}  # a decode worker's pulls, by transport
    gpus: tuple[str, ...] = ()  # UUIDs it has leased
    max_running: int = 0  # sequences it runs at once
    tokens_per_s: float = 0.0  # a prefill worker's prompt tokens per second of work, of late; 0: not known yet
    sequence_s: float = 0.0  # seconds that a sequence is expected to stay in a decode worker's batch; 0: not known
    prefilled_tokens: int = 0  # prompt tokens that it has computed since its start
    counters: dict[str, int] = {}  # what else it has counted since its start, by its name in /metrics
    phases: tuple[FinishedPhase, ...] = ()  # what ended of late: a few seconds' worth, and no more than some dozens
