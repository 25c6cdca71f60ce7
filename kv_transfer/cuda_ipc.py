"""The CUDA IPC transport: the head in a host segment, the blocks in one device allocation that receivers map.

The owner's GPU is known by its UUID, never by an index, as processes number GPUs differently. Unlike host memory, a
dead owner's device memory is gone with it, so nothing is pulled from the dead. Knows bytes; which may be copied, and
when, is decided by sender.py and mapped_puller.py.
"""

import struct
from pathlib import Path

import torch

from errors import DeviceError, KVTransferFailed
from kv_transfer.copy_runs import BlockCopies
from kv_transfer.cuda_device import HANDLE_BYTES, CudaDevice, CudaFailure
from kv_transfer.pool_export import MEMORY_HANDLE_PLACE
from kv_transfer.segment import SHM_DIRECTORY, Segment, create_segment, open_segment, sweep_segments

_MEMORY_HANDLE = struct.Struct(f"<40s{HANDLE_BYTES}sQ")  # UUID, IPC handle, bytes of blocks
_ALLOCATION_BYTES = 2 << 20  # the driver hands out memory in pieces of this size; less would share one with others


class CudaIpcDriver:
    """A `Driver` over the memory of one GPU. Safe to call from several threads."""

    kind = "cuda_ipc"

    def __init__(self, device: CudaDevice, directory: Path = SHM_DIRECTORY) -> None:
        self.device = device
        self.directory = directory
        self._readable = device.readable_uuids() | {device.uuid}
        self._own: dict[str, tuple[int, int]] = {}  # our pools by name: address, bytes
        # What is imported, by id of its segment: address, bytes, and whether it was opened (our own pool needs not be).
        self._imported: dict[int, tuple[int, int, bool]] = {}

    def alloc(self, worker_id: str, head_bytes: int, data_bytes: int, first_bytes: int | None = None) -> Segment:
        """See Driver. All of it: cuMemAlloc cannot grow what was exported."""
        segment = create_segment(worker_id, head_bytes, self.directory)
        whole = -(-data_bytes // _ALLOCATION_BYTES) * _ALLOCATION_BYTES
        try:
            pointer = self.device.alloc(whole)
            exported = self.device.export(pointer)
        except CudaFailure as error:
            segment.remove()
            raise DeviceError(f"{whole} bytes of KV pool on {self.device.uuid}: {error}") from error
        handle = _MEMORY_HANDLE.pack(self.device.uuid.encode(), exported, data_bytes)
        segment.mapping[MEMORY_HANDLE_PLACE : MEMORY_HANDLE_PLACE + len(handle)] = handle
        self._own[segment.name] = pointer, data_bytes
        return segment

    def reserve(self, pool: Segment, head_bytes: int, start: int, stop: int) -> None:
        """See Driver. It is there."""

    def free(self, pool: Segment) -> None:
        """See Driver."""
        pool.remove()
        memory = self._own.pop(pool.name, None)
        if memory is not None:
            try:
                self.device.free(memory[0])
            except CudaFailure as error:
                raise DeviceError(f"KV pool {pool.name}: {error}") from error

    def export_mem(self, pool: Segment) -> str:
        """See Driver."""
        return pool.name

    def import_mem(self, name: str) -> Segment:
        """See Driver."""
        segment = open_segment(name, self.directory)
        try:
            # A process cannot open its own handle; it has the address already.
            own = self._own.get(name)
            self._imported[id(segment)] = (*own, False) if own else (*self._open(segment), True)
        except KVTransferFailed:
            segment.close()
            raise
        return segment

    def open_head(self, name: str) -> Segment:
        """See Driver."""
        return open_segment(name, self.directory, is_writable=True)

    def close_mem(self, pool: Segment) -> None:
        """See Driver."""
        memory = self._imported.pop(id(pool), None)
        pool.close()
        if memory is not None and memory[2]:
            try:
                self.device.close(memory[0])
            except CudaFailure:
                pass  # the owner is gone, and its memory with it: nothing is left to close

    def data_bytes(self, pool: Segment, head_bytes: int) -> int:
        """See Driver."""
        return self._imported[id(pool)][1]

    def is_owner_alive(self, pool: Segment) -> bool:
        """See Driver."""
        return pool.is_owner_alive()

    def tensor(self, pool: Segment, head_bytes: int) -> torch.Tensor:
        """See Driver."""
        pointer, num_bytes = self._own[pool.name]
        return self.device.tensor(pointer, num_bytes)

    def host_blocks(self, pool: Segment, head_bytes: int) -> None:
        """See Driver."""
        return None

    def copy(self, pool: Segment, head_bytes: int, into: torch.Tensor, copies: BlockCopies) -> None:
        """See Driver. Raises KVTransferFailed when the owner dies or the device fails."""
        pointer, _, _ = self._imported[id(pool)]
        if not pool.is_owner_alive():
            raise KVTransferFailed(f"pool {pool.name}: its owner is dead, and its device memory with it")
        try:
            self.device.copy(pointer, into.data_ptr(), copies)
        except CudaFailure as error:
            raise KVTransferFailed(f"pool {pool.name}: {error}") from error
        if not pool.is_owner_alive():
            raise KVTransferFailed(f"pool {pool.name}: its owner died while it was pulled")

    @property
    def device_of_memory(self) -> torch.device:
        """See Driver."""
        return torch.device("cuda", self.device.ordinal)

    def copy_within(self, source: torch.Tensor, target: torch.Tensor, copies: BlockCopies) -> None:
        """See Driver. Raises KVTransferFailed when the device fails."""
        try:
            self.device.copy(source.data_ptr(), target.data_ptr(), copies)
        except CudaFailure as error:
            raise KVTransferFailed(f"a copy on {self.device.uuid}: {error}") from error

    def sweep(self) -> list[str]:
        """See Driver."""
        return sweep_segments(self.directory)

    def _open(self, segment: Segment) -> tuple[int, int]:
        field = segment.mapping[MEMORY_HANDLE_PLACE : MEMORY_HANDLE_PLACE + _MEMORY_HANDLE.size]
        if len(field) < _MEMORY_HANDLE.size:
            raise KVTransferFailed(f"pool {segment.name} is cut short")
        uuid, exported, data_bytes = _MEMORY_HANDLE.unpack(field)
        name = uuid.rstrip(b"\0").decode(errors="replace")
        if name not in self._readable:
            raise KVTransferFailed(f"pool {segment.name} lies on {name}, which {self.device.uuid} cannot read")
        if not segment.is_owner_alive():
            raise KVTransferFailed(f"pool {segment.name} is gone")
        try:
            pointer = self.device.open(exported)
            size = self.device.size_of(pointer)
        except CudaFailure as error:
            raise KVTransferFailed(f"pool {segment.name} cannot be mapped: {error}") from error
        if data_bytes > size:
            self.device.close(pointer)
            raise KVTransferFailed(f"pool {segment.name} says {data_bytes} bytes and has {size}")
        return pointer, data_bytes
