"""Pulling from a pool that this process can map: the transports of one host, over a driver.

Believes nothing that a handle or a pool's head says before it has compared it; whatever arrives, it reads inside the
mapping or raises KVTransferFailed. Does not know how memory is shared (driver.py).

Dead owners. Data of a dead owner is still valid memory: it cannot have been reused, as nobody is left who could, and
the generation proves that it was not reused before. So a pull from it is allowed as long as the pool can be reached:
mapped already, or its name not swept yet. A pool that is neither is "gone".
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from errors import KVTransferFailed
from kv_transfer.checksum import BlockSummer, RunningChecksum
from kv_transfer.copy_runs import BlockCopies, BlockCut
from kv_transfer.driver import Driver
from kv_transfer.faults import TransferFaults
from kv_transfer.offer_check import check_offer, check_still_offered
from kv_transfer.pool_export import PoolHead, fence, layout_digest
from kv_transfer.published_sum import wait_for_sum
from kv_transfer.segment import Segment
from messages.kv_transfer import KVHandle, PoolExport

SLICE_BYTES = 8 << 20  # copied at a stretch where somebody computes beside; about a millisecond


@dataclass(eq=False, slots=True)
class _Mapping:
    pool: Segment
    head: PoolHead
    num_pulls: int = 0  # that copy from it right now


class MappedPuller:
    """A `Puller` over a driver; pulls of different threads overlap."""

    def __init__(
        self,
        driver: Driver,
        layout_hash: str,
        cut: BlockCut,
        max_mappings: int = 64,
        *,
        summer: BlockSummer | None = None,
        faults: TransferFaults | None = None,
        between_slices: Callable[[], object] | None = None,
    ) -> None:
        """`between_slices`: called on the pulling thread, so that a large copy lets others have the cores."""
        self._driver = driver
        self._between_slices = between_slices
        self._summer, self._faults = summer, faults
        self._layout_digest = layout_digest(layout_hash)
        self._cut = cut
        self._max_mappings = max_mappings
        self._lock = threading.Lock()
        self._mappings: OrderedDict[tuple[str, int], _Mapping] = OrderedDict()  # (pool, epoch), oldest use first

    @property
    def kind(self) -> str:
        """See Puller."""
        return self._driver.kind

    @property
    def num_mappings(self) -> int:
        """Pools that are mapped at the moment."""
        return len(self._mappings)

    def pull(self, export: PoolExport, handle: KVHandle, into: torch.Tensor, block_ids: Sequence[int]) -> None:
        """See Puller."""
        target = into.detach().reshape(-1).view(torch.uint8)
        checksum = self._summer.begin(handle, self._cut) if self._summer else None
        with self._mapped(export.pool, export.pool_epoch) as mapping:
            # Asked every time: reading a file that was cut short after it was mapped is SIGBUS, not an exception.
            if self._driver.data_bytes(mapping.pool, mapping.head.shape.head_bytes) != mapping.head.shape.data_bytes:
                raise KVTransferFailed(f"pool {export.pool} has not the size that its head says")
            check_offer(handle, mapping.head)
            theirs: Sequence[int] = handle.block_ids
            if self._faults is not None:
                self._faults.before_copy()
                theirs, block_ids = self._faults.blocks(theirs, block_ids)
            fence()
            self._copy(mapping, target, theirs, block_ids, checksum)
            fence()
            if self._faults is not None:
                self._faults.after_copy()
            check_still_offered(handle, mapping.head)
            if checksum is not None:
                is_alive = partial(self._driver.is_owner_alive, mapping.pool)
                checksum.check(handle.transfer_id, wait_for_sum(handle, mapping.head, is_alive))

    def _copy(
        self,
        mapping: _Mapping,
        target: torch.Tensor,
        theirs: Sequence[int],
        ours: Sequence[int],
        checksum: RunningChecksum | None,
    ) -> None:
        step = len(theirs)
        if self._between_slices is not None:
            step = max(1, SLICE_BYTES // self._cut.source_block_bytes)
        for first in range(0, len(theirs), max(1, step)):
            if first and self._between_slices is not None:
                self._between_slices()
            self._copy_slice(mapping, target, theirs[first : first + step], ours[first : first + step], checksum)

    def _copy_slice(
        self,
        mapping: _Mapping,
        target: torch.Tensor,
        theirs: Sequence[int],
        ours: Sequence[int],
        checksum: RunningChecksum | None,
    ) -> None:
        head_bytes = mapping.head.shape.head_bytes
        if checksum is not None and checksum.compiled is not None:
            source = self._driver.host_blocks(mapping.pool, head_bytes)
            if source is not None:
                checksum.copy(source, theirs, target.numpy(), ours)
                return
        self._driver.copy(mapping.pool, head_bytes, target, BlockCopies(self._cut, theirs, ours))
        if checksum is not None:
            checksum.add(target, ours)

    def prune(self) -> int:
        """See Puller. A dead owner's memory is only freed when nobody maps it."""
        with self._lock:
            dead = [key for key, mapping in self._mappings.items() if not self._driver.is_owner_alive(mapping.pool)]
            for key in dead:
                self._drop(key)
            return len(dead)

    def close(self) -> None:
        """See Puller."""
        with self._lock:
            for key in list(self._mappings):
                self._drop(key)

    @contextmanager
    def _mapped(self, name: str, epoch: int) -> Iterator[_Mapping]:
        """The mapping of pool and epoch, kept open for the time of one pull. Raises KVTransferFailed."""
        key = (name, epoch)
        with self._lock:
            mapping = self._mappings.get(key)
            if mapping is None:
                mapping = self._mappings[key] = self._map(name, epoch)
                if len(self._mappings) > self._max_mappings:
                    self._drop(next(iter(self._mappings)))
            self._mappings.move_to_end(key)
            mapping.num_pulls += 1
        try:
            yield mapping
        finally:
            with self._lock:
                mapping.num_pulls -= 1
                if mapping.num_pulls == 0 and self._mappings.get(key) is not mapping:
                    self._driver.close_mem(mapping.pool)  # it was dropped meanwhile

    def _map(self, name: str, epoch: int) -> _Mapping:
        pool = self._driver.import_mem(name)
        try:
            head = PoolHead.read(pool.mapping)
            shape = head.shape
            if shape.epoch != epoch:
                raise KVTransferFailed(f"pool {name} has epoch {shape.epoch}, the handle {epoch}")
            if shape.layout_digest != self._layout_digest or shape.block_bytes != self._cut.source_block_bytes:
                raise KVTransferFailed(f"pool {name} has another KV layout, {shape.block_bytes} bytes a block")
            if self._driver.data_bytes(pool, shape.head_bytes) != shape.data_bytes:
                raise KVTransferFailed(f"pool {name} has not the size that its head says")
        except KVTransferFailed:
            self._driver.close_mem(pool)
            raise
        return _Mapping(pool, head)

    def _drop(self, key: tuple[str, int]) -> None:
        mapping = self._mappings.pop(key)
        if mapping.num_pulls == 0:
            self._driver.close_mem(mapping.pool)
