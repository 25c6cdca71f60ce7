"""Buffers that blocks lie in on their way between a pool and a network. Knows no transport."""

from collections.abc import Sequence

import torch

from errors import KVTransferFailed
from kv_transfer.checksum import RunningChecksum
from kv_transfer.copy_runs import BlockCopies, BlockCut
from kv_transfer.driver import CopyWithin


class StagingBuffers:
    """As many buffers as were needed at once, kept for the next transfer. Safe to call from several threads."""

    def __init__(self, num_bytes: int, block_bytes: int, device: torch.device) -> None:
        """`num_bytes`: of one buffer; it holds a block at the least."""
        self.num_blocks = max(1, num_bytes // block_bytes)
        self._num_bytes = self.num_blocks * block_bytes
        self._device = device
        self._free: list[torch.Tensor] = []

    def take(self) -> torch.Tensor:
        """A buffer: uint8 [num_blocks * block_bytes]. Raises KVTransferFailed."""
        try:
            return self._free.pop()
        except IndexError:
            try:
                return torch.empty(self._num_bytes, dtype=torch.uint8, device=self._device)
            except RuntimeError as error:  # torch says so of host memory, and OutOfMemoryError is one
                raise KVTransferFailed(f"no staging buffer of {self._num_bytes} bytes: {error}") from error

    def give_back(self, buffer: torch.Tensor) -> None:
        """Only what nobody writes any more: after a transfer that was given up, the buffer is let go instead."""
        self._free.append(buffer)


def unstage(
    copy_within: CopyWithin,
    staging: torch.Tensor,
    target: torch.Tensor,
    block_ids: Sequence[int],
    cut: BlockCut,
    checksum: RunningChecksum | None,
) -> None:
    """Copy what lies in a buffer, block after block, to blocks of the pool `target`; uint8, 1-D."""
    if checksum is not None and checksum.compiled is not None and target.device.type == "cpu":
        checksum.copy(staging.numpy(), range(len(block_ids)), target.numpy(), block_ids)
        return
    copy_within(staging, target, BlockCopies(cut, range(len(block_ids)), block_ids))
    if checksum is not None:
        checksum.add(target, block_ids)
