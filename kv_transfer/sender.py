"""The owner's end of the KV transfer: an exported pool, and which of its blocks are on offer.

A sender knows offers and slots. Of a tensor-parallel worker every rank has a pool with blocks of the same ids, and rank
0's sender keeps all their heads alike: an offer stands in each of them or in none. It does not know who pulls, when the
blocks are free again (the caller withdraws, then frees), what is in a block, or how memory is shared (driver.py).
"""

import mmap
import secrets
import threading
from collections import deque
from collections.abc import Sequence
from types import TracebackType

from errors import KVTransferFailed
from kv_transfer.checksum import BlockSummer
from kv_transfer.driver import Driver
from kv_transfer.pool_export import PoolHead, PoolShape, layout_digest, offer_digest
from kv_transfer.segment import Segment
from kv_transfer.shared_memory import ShmDriver
from messages.kv_transfer import KVHandle, PoolExport


class KVSender:
    """Owns one exported pool. Safe to call from several threads. Use as a context manager, or `close()`."""

    def __init__(
        self,
        driver: Driver,
        worker_id: str,
        layout_hash: str,
        pool: Segment,
        head: PoolHead,
        summer: BlockSummer | None = None,
    ) -> None:
        self.worker_id = worker_id
        self.buffer = driver.tensor(pool, head.shape.head_bytes)  # uint8 [num_blocks * block_bytes]
        self.pool = driver.export_mem(pool)  # the pool's name
        self._driver = driver
        self._summer = summer
        self._layout_hash = layout_hash
        self._segment = pool
        self._head = head
        self._heads = [head]  # and those of the pools that follow
        self._followers: list[Segment] = []
        self._lock = threading.Lock()
        self._slots: dict[str, int] = {}  # open offers: transfer id -> slot
        # First in, first out: a slot rests as long as possible before its next offer.
        self._free_slots = deque(range(head.shape.num_slots))
        self._is_closed = False

    @classmethod
    def create(
        cls,
        worker_id: str,
        num_blocks: int,
        block_bytes: int,
        layout_hash: str,
        max_offers: int,
        driver: Driver | None = None,
        summer: BlockSummer | None = None,
        first_blocks: int | None = None,
    ) -> "KVSender":
        """Allocate and export a pool of `num_blocks` blocks; with a `summer`, offers say what its blocks hold.

        With `first_blocks` only these have memory; the others are to be reserved before they are used.

        Raises DeviceError when the memory is not there.
        """
        if min(num_blocks, block_bytes, max_offers) < 1:
            raise ValueError(f"a pool of {num_blocks} blocks of {block_bytes} bytes with {max_offers} offers")
        driver = driver or ShmDriver()
        # Never 0: a handle of zeros must not fit.
        epoch = secrets.randbelow(2**63 - 1) + 1
        shape = PoolShape(epoch, block_bytes, num_blocks, max_offers, layout_digest(layout_hash))
        first_bytes = None if first_blocks is None else first_blocks * block_bytes
        pool = driver.alloc(worker_id, shape.head_bytes, shape.data_bytes, first_bytes)
        return cls(driver, worker_id, layout_hash, pool, PoolHead.write(pool.mapping, shape), summer)

    def reserve(self, first: int, stop: int) -> None:
        """Have memory for blocks first..stop. Raises DeviceError when there is none."""
        shape = self._head.shape
        self._driver.reserve(self._segment, shape.head_bytes, first * shape.block_bytes, stop * shape.block_bytes)

    def num_reservable(self) -> int:
        """For how many blocks there would be memory now, of a pool that grows."""
        return self._segment.room_bytes() // self._head.shape.block_bytes

    @property
    def head(self) -> tuple[mmap.mmap, int]:
        """The mapping that begins with the pool's head, and the head's size in bytes."""
        return self._segment.mapping, self._head.shape.head_bytes

    def export(self, host_id: str, device: str = "cpu", addresses: dict[str, bytes] | None = None) -> PoolExport:
        """What receivers are to know of the pool."""
        shape = self._head.shape
        return PoolExport(
            worker_id=self.worker_id,
            pool=self.pool,
            pool_epoch=shape.epoch,
            host_id=host_id,
            device=device,
            block_bytes=shape.block_bytes,
            num_blocks=shape.num_blocks,
            addresses=addresses or {},
        )

    def follow(self, export: PoolExport) -> None:
        """From here on, what we offer stands in that rank's pool too. Before the first offer.

        Raises KVTransferFailed when it cannot be reached or is no pool like ours.
        """
        segment = self._driver.open_head(export.pool)
        self._followers.append(segment)
        head = PoolHead.read(segment.mapping)
        ours, theirs = self._head.shape, head.shape
        assert not self._slots, "whoever follows has missed offers"
        if (theirs.num_blocks, theirs.num_slots) != (ours.num_blocks, ours.num_slots):
            raise KVTransferFailed(f"pool {export.pool} has {theirs.num_blocks} blocks, ours has {ours.num_blocks}")
        self._heads.append(head)

    @property
    def num_offers(self) -> int:
        """Open offers."""
        return len(self._slots)

    def has_offers(self) -> bool:
        """Whether an offer stands in this pool, a rank 0's that it follows included."""
        return self._head.has_offers()

    @property
    def num_free_offers(self) -> int:
        """Offers that can still be made."""
        return len(self._free_slots)

    @property
    def is_summing(self) -> bool:
        """Whether offers get checksums. Not of a worker on several GPUs, as rank 0 cannot read the others' blocks."""
        return self._summer is not None and not (self._followers and self._driver.device_of_memory.type != "cpu")

    def checksums(self, block_ids: Sequence[int]) -> tuple[int, ...]:
        """Of filled blocks, per rank; reads them all, so on another thread than the event loop's. Empty where nothing
        is summed."""
        if self._summer is None or not self.is_summing:
            return ()
        buffers = [
            self.buffer,
            *(self._driver.tensor(segment, self._head.shape.head_bytes) for segment in self._followers),
        ]
        return tuple(self._summer.checksum(buffer, block_ids, self._head.shape.block_bytes) for buffer in buffers)

    def offer(
        self,
        transfer_id: str,
        block_ids: Sequence[int],
        num_tokens: int,
        *,
        sums_follow: bool = False,
    ) -> KVHandle:
        """Offer filled blocks; they must not change until the offer is withdrawn.

        `sums_follow`: the caller will `put_checksums`, which a puller waits for; else they are summed here. Raises
        KVTransferFailed when every slot is taken or the sender is closed, ValueError for ids that are no blocks of this
        pool, the same block twice or a transfer id that is on offer already.
        """
        shape = self._head.shape
        if not block_ids or not all(0 <= block_id < shape.num_blocks for block_id in block_ids):
            raise ValueError(
                f"offer {transfer_id}: not all of its {len(block_ids)} blocks are in 0..{shape.num_blocks - 1}"
            )
        if len(set(block_ids)) != len(block_ids):
            raise ValueError(f"offer {transfer_id}: the same block twice among its {len(block_ids)} blocks")
        checksums = () if sums_follow else self.checksums(block_ids)
        with self._lock:
            if self._is_closed:
                raise KVTransferFailed(f"offer {transfer_id}: the pool is closed")
            if transfer_id in self._slots:
                raise ValueError(f"transfer {transfer_id} is on offer already")
            if not self._free_slots:
                raise KVTransferFailed(f"offer {transfer_id}: all {shape.num_slots} offers are open")
            slot = self._free_slots.popleft()
            self._slots[transfer_id] = slot
            said = self.worker_id, transfer_id, num_tokens, block_ids, len(self._heads)
            generation = [head.open_slot(slot, offer_digest(*said, head.shape.epoch)) for head in self._heads][0]
            self._put_checksums(slot, checksums)
        return KVHandle(
            transfer_id=transfer_id,
            worker_id=self.worker_id,
            pool=self.pool,
            pool_epoch=shape.epoch,
            slot=slot,
            generation=generation,
            layout_hash=self._layout_hash,
            num_tokens=num_tokens,
            block_ids=list(block_ids),
            num_ranks=len(self._heads),
            is_summed=self.is_summing,
        )

    def put_checksums(self, transfer_id: str, checksums: Sequence[int]) -> None:
        """What `checksums` said of the offer's blocks; nothing happens if it was withdrawn meanwhile."""
        with self._lock:
            if transfer_id in self._slots:
                self._put_checksums(self._slots[transfer_id], checksums)

    def withdraw(self, transfer_id: str) -> bool:
        """End an offer; when this returns its blocks may be reused, and a pull of them that still runs will fail.

        Whether there was such an offer; withdrawing twice is harmless.
        """
        with self._lock:
            slot = self._slots.pop(transfer_id, None)
            if slot is None:
                return False
            self._close_slot(slot)
            self._free_slots.append(slot)
            return True

    def close(self) -> None:
        """Withdraw every offer and remove the pool's name. `buffer` stays usable for as long as somebody holds it."""
        with self._lock:
            self._is_closed = True
            try:
                while self._slots:
                    self._close_slot(self._slots.popitem()[1])
            finally:
                self._driver.free(self._segment)
                for segment in self._followers:
                    segment.close()

    def _put_checksums(self, slot: int, checksums: Sequence[int]) -> None:
        for head, checksum in zip(self._heads, checksums, strict=bool(checksums)):
            head.put_checksum(slot, checksum)

    def _close_slot(self, slot: int) -> None:
        for head in self._heads:
            head.close_slot(slot)

    def __enter__(self) -> "KVSender":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
