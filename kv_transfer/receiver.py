"""The puller's end of the KV transfer: check a handle, copy its blocks, check again.

A receiver believes nothing that a handle or a pool's head says before it has compared it; whatever arrives, it reads
inside the mapping or raises KVTransferFailed. It does not know where handles come from, whom to tell afterwards, or how
memory is shared (driver.py).

Dead owners. Data of a dead owner is still valid memory: it cannot have been reused, as nobody is left who could, and
the generation proves that it was not reused before. So a pull from it is allowed as long as the pool can be reached:
mapped already, or its name not swept yet. A pool that is neither is "gone".
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from kv_transfer.driver import CopyRun, Driver
from kv_transfer.pool_export import PoolHead, fence, layout_digest, offer_digest
from kv_transfer.segment import Segment
from kv_transfer.shared_memory import ShmDriver
from messages import KVHandle, KVTransferFailed


@dataclass(eq=False, slots=True)
class _Mapping:
    pool: Segment
    head: PoolHead
    num_pulls: int = 0  # that copy from it right now


class KVReceiver:
    """Pulls offered blocks. Safe to call from several threads; pulls of different threads overlap."""

    def __init__(
        self, layout_hash: str, block_bytes: int, driver: Driver | None = None, max_mappings: int = 64
    ) -> None:
        self._layout_hash = layout_hash
        self._layout_digest = layout_digest(layout_hash)
        self._block_bytes = block_bytes
        self._driver = driver or ShmDriver()
        self._max_mappings = max_mappings
        self._lock = threading.Lock()
        self._mappings: OrderedDict[tuple[str, int], _Mapping] = OrderedDict()  # (pool, epoch), oldest use first

    @property
    def num_mappings(self) -> int:
        """Pools that are mapped at the moment."""
        return len(self._mappings)

    def pull(self, handle: KVHandle, into: torch.Tensor, block_ids: Sequence[int]) -> None:
        """Copy the handle's blocks, in order, to `block_ids` of our own pool `into`; blocks the calling thread.

        `into` is the whole pool, contiguous: uint8 [num_blocks, block_bytes], or any shape and dtype of that many
        bytes. Raises KVTransferFailed with the reason when the handle does not fit or its offer no longer stands;
        our blocks may then hold anything. Raises ValueError when `into` or `block_ids` cannot be written to.
        """
        target = self._target(into, block_ids)
        if handle.layout_hash != self._layout_hash:
            raise KVTransferFailed(f"the KV layout is {handle.layout_hash[:80]!r}, ours is {self._layout_hash!r}")
        if len(handle.block_ids) != len(block_ids):
            raise KVTransferFailed(f"the handle has {len(handle.block_ids)} blocks, {len(block_ids)} were expected")
        with self._mapped(handle.pool, handle.pool_epoch) as mapping:
            self._check(handle, mapping)
            fence()
            runs = merge_runs(handle.block_ids, block_ids, self._block_bytes)
            self._driver.copy(mapping.pool, mapping.head.shape.head_bytes, target, runs)
            fence()
            if mapping.head.generation(handle.slot) != handle.generation:
                raise KVTransferFailed(f"transfer {handle.transfer_id[:80]}: withdrawn while it was pulled")

    def prune(self) -> int:
        """Drop the mappings of dead owners; how many. A dead owner's memory is only freed when nobody maps it."""
        with self._lock:
            dead = [key for key, mapping in self._mappings.items() if not self._driver.is_owner_alive(mapping.pool)]
            for key in dead:
                self._drop(key)
            return len(dead)

    def close(self) -> None:
        """Drop every mapping. A pull that still runs ends undisturbed."""
        with self._lock:
            for key in list(self._mappings):
                self._drop(key)

    def _target(self, into: torch.Tensor, block_ids: Sequence[int]) -> torch.Tensor:
        if not into.is_contiguous():
            raise ValueError("the pool to pull into must be contiguous")
        target = into.detach().reshape(-1).view(torch.uint8)
        num_blocks = target.numel() // self._block_bytes
        if target.numel() % self._block_bytes or not all(0 <= block_id < num_blocks for block_id in block_ids):
            raise ValueError(
                f"not all of the {len(block_ids)} blocks to pull into are in a pool of {target.numel()} bytes, "
                f"{self._block_bytes} a block"
            )
        if len(set(block_ids)) != len(block_ids):
            raise ValueError("the same block twice to pull into")
        return target

    def _check(self, handle: KVHandle, mapping: _Mapping) -> None:
        """Everything a handle says, against the owner's head, before the first byte."""
        shape = mapping.head.shape
        name = f"transfer {handle.transfer_id[:80]}"
        # Asked every time: reading a file that was cut short after it was mapped is SIGBUS, not an exception.
        if self._driver.data_bytes(mapping.pool, shape.head_bytes) != shape.data_bytes:
            raise KVTransferFailed(f"{name}: pool {handle.pool} has not the size that its head says")
        if not 0 <= handle.slot < shape.num_slots:
            raise KVTransferFailed(f"{name}: slot {handle.slot} of {shape.num_slots}")
        for block_id in handle.block_ids:
            if not 0 <= block_id < shape.num_blocks:
                raise KVTransferFailed(f"{name}: block {block_id} of a pool of {shape.num_blocks}")
        generation = mapping.head.generation(handle.slot)
        if generation != handle.generation or generation % 2 == 0:
            raise KVTransferFailed(f"{name}: no longer offered, generation {handle.generation} but is {generation}")
        digest = offer_digest(handle.worker_id, handle.transfer_id, handle.num_tokens, handle.block_ids)
        if mapping.head.digest(handle.slot) != digest:
            raise KVTransferFailed(f"{name}: the handle is not what was offered in slot {handle.slot}")

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
            if shape.layout_digest != self._layout_digest or shape.block_bytes != self._block_bytes:
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


def merge_runs(source_ids: Sequence[int], target_ids: Sequence[int], block_bytes: int) -> list[CopyRun]:
    """Copies of block source_ids[i] to target_ids[i]; neighbours on both sides become one run."""
    runs: list[CopyRun] = []
    first = 0
    for index in range(1, len(source_ids) + 1):
        is_next = (
            index < len(source_ids)
            and source_ids[index] == source_ids[index - 1] + 1
            and target_ids[index] == target_ids[index - 1] + 1
        )
        if not is_next:
            runs.append(
                CopyRun(source_ids[first] * block_bytes, target_ids[first] * block_bytes, (index - first) * block_bytes)
            )
            first = index
    return runs
