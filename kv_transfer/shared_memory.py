"""The shared-memory transport: head and blocks in one segment, pulled by memcpy. The production path on a CPU.

It knows how to reach bytes; which bytes may be copied, and when, is decided by sender.py and receiver.py.
"""

from pathlib import Path

import numpy as np
import torch

from kernels.block_sums import Bytes
from kv_transfer.copy_runs import BlockCopies
from kv_transfer.host_copy import copy_on_host, copy_runs
from kv_transfer.segment import SHM_DIRECTORY, Segment, create_segment, open_segment, sweep_segments


class ShmDriver:
    """A `Driver` over POSIX shared memory."""

    kind = "shared_memory"

    def __init__(self, directory: Path = SHM_DIRECTORY) -> None:
        self.directory = directory

    def alloc(self, worker_id: str, head_bytes: int, data_bytes: int, first_bytes: int | None = None) -> Segment:
        """See Driver."""
        first = None if first_bytes is None else head_bytes + first_bytes
        return create_segment(worker_id, head_bytes + data_bytes, self.directory, first)

    def reserve(self, pool: Segment, head_bytes: int, start: int, stop: int) -> None:
        """See Driver."""
        pool.reserve(head_bytes + start, head_bytes + stop)

    def free(self, pool: Segment) -> None:
        """See Driver."""
        pool.remove()

    def export_mem(self, pool: Segment) -> str:
        """See Driver."""
        return pool.name

    def import_mem(self, name: str) -> Segment:
        """See Driver."""
        return open_segment(name, self.directory)

    def open_head(self, name: str) -> Segment:
        """See Driver."""
        return open_segment(name, self.directory, is_writable=True)

    def close_mem(self, pool: Segment) -> None:
        """See Driver."""
        pool.close()

    def data_bytes(self, pool: Segment, head_bytes: int) -> int:
        """See Driver."""
        return pool.size_bytes() - head_bytes

    def is_owner_alive(self, pool: Segment) -> bool:
        """See Driver."""
        return pool.is_owner_alive()

    def tensor(self, pool: Segment, head_bytes: int) -> torch.Tensor:
        """See Driver."""
        return torch.frombuffer(pool.mapping, dtype=torch.uint8, offset=head_bytes)

    def host_blocks(self, pool: Segment, head_bytes: int) -> Bytes:
        """See Driver."""
        return np.frombuffer(pool.mapping, dtype=np.uint8, offset=head_bytes)

    def copy(self, pool: Segment, head_bytes: int, into: torch.Tensor, copies: BlockCopies) -> None:
        """See Driver. One memcpy per row, on the calling thread alone: torch's copy_ would take the cores that the
        decode step computes on. numpy because it takes read-only memory without complaint and drops the GIL for every
        copy above 500 bytes. It is taken back after each run: beside a torch loop 32 scattered blocks of
        360 KiB took 2.3 ms as they do alone (2.2 ms), beside a loop of pure Python 226 ms (7 ms with
        `sys.setswitchinterval(0.0005)`).
        """
        copy_runs(self.host_blocks(pool, head_bytes), into.numpy(), copies.runs())

    @property
    def device_of_memory(self) -> torch.device:
        """See Driver."""
        return torch.device("cpu")

    def copy_within(self, source: torch.Tensor, target: torch.Tensor, copies: BlockCopies) -> None:
        """See Driver."""
        copy_on_host(source, target, copies)

    def sweep(self) -> list[str]:
        """See Driver."""
        return sweep_segments(self.directory)
