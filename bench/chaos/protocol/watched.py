"""What is watched in a simulated worker: the rooms' own parts, which believe nothing they are told.

A pull that says it succeeded must have brought the bytes that were offered; no block may be freed while it is on offer;
copies and beats stop half way, so that others can go on meanwhile.
"""

from collections.abc import Callable, Iterable, Sequence

import torch

from bench.chaos.protocol.clock import Clock
from bench.chaos.protocol.fiber import Sleep, pause
from bench.chaos.protocol.oracle import Violation
from broker.heartbeat import Heartbeat
from engine.block_space import BlockSpace
from kv_transfer.copy_runs import BlockCopies, CopyRun
from kv_transfer.host_copy import copy_runs
from kv_transfer.receiver import KVReceiver
from kv_transfer.segment import Segment
from kv_transfer.sender import KVSender
from kv_transfer.shared_memory import ShmDriver
from messages.kv_transfer import KVHandle, PoolExport


class PausingDriver(ShmDriver):
    """Others may go on between the blocks of a copy, and before and after it."""

    def copy(self, pool: Segment, head_bytes: int, into: torch.Tensor, copies: BlockCopies) -> None:
        pause()
        for run in copies.runs():
            half = run.num_bytes // 2
            for start, num_bytes in ((0, half), (half, run.num_bytes - half)):
                part = CopyRun(run.source_byte + start, run.target_byte + start, num_bytes)
                copy_runs(self.host_blocks(pool, head_bytes), into.numpy(), [part])
                pause()


class Offered:
    """What every offer's blocks held when it was made, by transfer id."""

    def __init__(self) -> None:
        self.bytes: dict[str, bytes] = {}


class WatchedSender(KVSender):
    """Tells `offered` what is offered, and knows what stands."""

    offered: Offered
    standing: dict[str, KVHandle]

    def offer(
        self,
        transfer_id: str,
        block_ids: Sequence[int],
        num_tokens: int,
        *,
        sums_follow: bool = False,
    ) -> KVHandle:
        handle = super().offer(transfer_id, block_ids, num_tokens, sums_follow=sums_follow)
        self.offered.bytes[transfer_id] = _bytes_of(self.buffer, self._head.shape.block_bytes, block_ids)
        self.standing[transfer_id] = handle
        return handle

    def withdraw(self, transfer_id: str) -> bool:
        self.standing.pop(transfer_id, None)
        return super().withdraw(transfer_id)


class WatchedReceiver(KVReceiver):
    """Believes no success."""

    offered: Offered

    def pull(
        self,
        handle: KVHandle,
        into: torch.Tensor,
        block_ids: Sequence[int],
        export: PoolExport | None = None,
        request_id: str = "",
    ) -> None:
        super().pull(handle, into, block_ids, export, request_id)
        if _bytes_of(into.view(-1).view(torch.uint8), self._block_bytes, block_ids) != self.offered.bytes.get(
            handle.transfer_id
        ):
            raise Violation(f"pull {handle.transfer_id} succeeded and brought other bytes than were offered")


class WatchedSpace(BlockSpace):
    """Calls `on_free` when blocks have been freed."""

    on_free: Callable[[list[int]], None] | None = None

    def free(self, block_ids: Iterable[int]) -> None:
        freed = list(block_ids)
        super().free(freed)
        if self.on_free is not None:
            self.on_free([block_id for block_id in freed if self._allocator.ref_count(block_id) == 0])

    def holders(self, block_id: int) -> int:
        """How often the block is held, by the cache too."""
        return self._allocator.ref_count(block_id)


class FiberHeartbeat(Heartbeat):
    """Its thread is a fiber, which sleeps on the simulation's clock."""

    before_beat: Callable[[], None]

    def begin(self, clock: Clock) -> None:
        """What the thread does, until it stalls or dies."""
        self._wake = _Bell(clock)  # type: ignore[assignment]
        self._run()

    @property
    def is_alive(self) -> bool:
        return True

    def _beat(self) -> bool:
        self.before_beat()
        return super()._beat()


class _Bell:
    """The event on which the heartbeat's thread waits for its next beat."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._sleep: Sleep | None = None

    def wait(self, timeout_s: float) -> None:
        self._sleep = Sleep(self._clock.now_s + timeout_s)
        pause(self._sleep)

    def set(self) -> None:
        if self._sleep is not None:
            self._sleep.until_s = self._clock.now_s

    def clear(self) -> None:
        self._sleep = None


def _bytes_of(pool: torch.Tensor, block_bytes: int, block_ids: Sequence[int]) -> bytes:
    data = pool.numpy()
    return b"".join(data[one * block_bytes : (one + 1) * block_bytes].tobytes() for one in block_ids)
