"""The seam between the transfer's logic and the memory it runs on.

Sender and receiver decide (offers, generations, checks); a driver does, in a few calls that are thin enough to be
trusted without a test of their own. Whatever the driver, a pool begins with a head (pool_export.py) in a host segment:
both sides read the generations there without touching a device, and the flock on it says whether the owner lives.
Under shared memory (shared_memory.py) the blocks follow the head in that very segment. A CUDA driver keeps
the segment for the head alone, allocates the blocks with one cuMemAlloc, and puts the device's UUID and
the 64-byte IPC handle into the head's `memory handle` field.

This file knows no transport, no handle and no block table.
"""

from collections.abc import Callable
from typing import Protocol

import torch

from kernels.block_sums import Bytes
from kv_transfer.copy_runs import BlockCopies
from kv_transfer.segment import Segment

CopyWithin = Callable[[torch.Tensor, torch.Tensor, BlockCopies], None]  # Driver.copy_within


class Driver(Protocol):
    """What a transport needs of memory. Pools are known by the segment of their head."""

    @property
    def kind(self) -> str:
        """The transport's name in settings, logs and metrics."""

    def alloc(self, worker_id: str, head_bytes: int, data_bytes: int, first_bytes: int | None = None) -> Segment:
        """Memory for a pool, zeroed and reserved: all of it, or where it can grow the first bytes of its data.

        Raises DeviceError when there is not enough.
        """

    def reserve(self, pool: Segment, head_bytes: int, start: int, stop: int) -> None:
        """Have these bytes of the data too. Raises DeviceError when there is not enough."""

    def free(self, pool: Segment) -> None:
        """The owner gives the pool up: its name is gone, mappings of others stay valid. Harmless when repeated."""

    def export_mem(self, pool: Segment) -> str:
        """The name by which another process imports the pool."""

    def import_mem(self, name: str) -> Segment:
        """Somebody's pool, read-only. `name` is not trusted. Raises KVTransferFailed."""

    def open_head(self, name: str) -> Segment:
        """The pool of another process of this worker, its head writable; to be closed. Raises KVTransferFailed."""

    def close_mem(self, pool: Segment) -> None:
        """The importer lets go. Harmless when repeated."""

    def data_bytes(self, pool: Segment, head_bytes: int) -> int:
        """How many bytes of blocks are there now; what the head says must not exceed it."""

    def is_owner_alive(self, pool: Segment) -> bool:
        """Whether the process that allocated the pool still holds it."""

    def tensor(self, pool: Segment, head_bytes: int) -> torch.Tensor:
        """Blocks of our own pool or, on a CPU, of `open_head`'s: uint8 [data_bytes], writable, page-aligned."""

    def host_blocks(self, pool: Segment, head_bytes: int) -> Bytes | None:
        """An imported pool's blocks as memory that the CPU reads; None where they are not."""

    def copy(self, pool: Segment, head_bytes: int, into: torch.Tensor, copies: BlockCopies) -> None:
        """Copy blocks of the pool into `into` (uint8, 1-D) and return when they are there; the GIL is free."""

    @property
    def device_of_memory(self) -> torch.device:
        """Where the blocks lie."""

    def copy_within(self, source: torch.Tensor, target: torch.Tensor, copies: BlockCopies) -> None:
        """Copy between two of this process's tensors there, uint8 1-D, and return when it is done."""

    def sweep(self) -> list[str]:
        """Remove what dead owners left behind; the names."""
