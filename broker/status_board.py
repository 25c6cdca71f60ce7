"""What a worker says of itself: a board its loop writes and its heartbeat thread reads.

Knows the status message and the clock; knows nothing of Redis, nor of what the loop does.
"""

import os
import socket
import time
import uuid
from collections.abc import Callable, Mapping

from messages.kv_transfer import PoolExport, TransferCount
from messages.worker_status import Role, WorkerState, WorkerStatus
from observability.worker_meters import WorkerMeters


class StatusBoard:
    """One per worker process. Plain values, each written by one thread; the heartbeat may read any mix of them."""

    def __init__(self, role: Role) -> None:
        self.role = role
        self.worker_id = f"{role}-{uuid.uuid4().hex[:12]}"
        self.state = WorkerState.LOADING
        self.detail = ""
        self.model_hash = ""
        self.block_size = 0
        self.num_blocks = 0
        self.free_blocks = 0
        self.num_running = 0
        self.max_running = 0
        self.tokens_per_s = 0.0
        self.sequence_s = 0.0
        self.prefilled_tokens = 0
        self.meters = WorkerMeters()
        self.gpus: tuple[str, ...] = ()
        self.export: PoolExport | None = None
        self.read_transfers: Callable[[], Mapping[str, TransferCount]] = dict
        self._started_ms = int(time.time() * 1000)
        self._last_tick = time.monotonic()
        self._num_rounds = 0

    def say(self, detail: str) -> None:
        """What the worker is busy with while it is not ready, e.g. "loading weights 43 %"."""
        self.detail = detail

    def tick(self, *, free_blocks: int, num_running: int) -> None:
        """The loop came round. A board that is not ticked makes the worker count as wedged."""
        self.free_blocks = free_blocks
        self.num_running = num_running
        self._num_rounds += 1
        self._last_tick = time.monotonic()

    def ready(self, *, model_hash: str, block_size: int, num_blocks: int) -> None:
        """Loading is over; the loop begins."""
        self.model_hash, self.block_size, self.num_blocks = model_hash, block_size, num_blocks
        self.tick(free_blocks=num_blocks, num_running=0)
        self.state = WorkerState.READY
        self.detail = ""

    def num_rounds(self) -> int | None:
        """How often the loop came round; None unless it is to come round (loading and draining take what they take)."""
        return self._num_rounds if self.state is WorkerState.READY else None

    def read(self) -> WorkerStatus:
        """The status as of now."""
        return WorkerStatus(
            worker_id=self.worker_id,
            role=self.role,
            state=self.state,
            host=socket.gethostname(),
            pid=os.getpid(),
            started_ms=self._started_ms,
            model_hash=self.model_hash,
            capacity_tokens=self.num_blocks * self.block_size,
            block_size=self.block_size,
            num_blocks=self.num_blocks,
            free_blocks=self.free_blocks,
            num_running=self.num_running,
            idle_s=time.monotonic() - self._last_tick,
            detail=self.detail,
            export=self.export,
            transfers=dict(self.read_transfers()),
            gpus=self.gpus,
            max_running=self.max_running,
            tokens_per_s=self.tokens_per_s,
            sequence_s=self.sequence_s,
            prefilled_tokens=self.prefilled_tokens,
            counters=dict(self.meters.counts),
            phases=self.meters.recent_phases(),
        )
