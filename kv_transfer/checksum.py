"""Whether the bytes that arrived are the bytes that were offered: one checksum per offer and pool, in the pool's head.

The owner sums its blocks while the offer is on its way, the puller sums what it writes while it copies, so that neither
reads a byte twice and nobody waits. It finds what generations cannot: bytes that changed on the way, and an
owner that wrote into blocks it still offered. Whole blocks only: where ranks are cut differently on the two sides, the
parts that a rank pulls are not summed. Knows blocks and handles; knows no transport.
"""

import hashlib
from collections.abc import Sequence

import torch

from errors import KVTransferFailed
from kernels import cpu_build
from kernels.block_sums import Bytes, CpuBlockSums, Sums, block_sums
from kv_transfer.copy_runs import BlockCut
from messages.kv_transfer import KVHandle
from settings.kv import TransferSettings


class RunningChecksum:
    """The checksum of one pull's blocks in their order, as they are copied."""

    def __init__(self, compiled: CpuBlockSums | None, block_bytes: int) -> None:
        self.compiled = compiled
        self._block_bytes = block_bytes
        self._digest = hashlib.blake2b(digest_size=8)

    def copy(self, source: Bytes, source_ids: Sequence[int], target: Bytes, target_ids: Sequence[int]) -> None:
        """Copy the next blocks between memories of the host, and sum them on the way; where there is `compiled`."""
        assert self.compiled is not None
        self._add(self.compiled.copy(source, source_ids, target, target_ids, self._block_bytes))

    def add(self, target: torch.Tensor, block_ids: Sequence[int]) -> None:
        """Sum the next blocks where they have been copied to. target: uint8, 1-D."""
        self._add(_sums(self.compiled, target, block_ids, self._block_bytes))

    def check(self, transfer_id: str, expected: int) -> None:
        """After the last block. Raises KVTransferFailed."""
        if self.value != expected:
            raise KVTransferFailed(f"transfer {transfer_id[:80]}: other bytes have arrived than were offered")

    @property
    def value(self) -> int:
        """Of what was added so far."""
        return int.from_bytes(self._digest.digest(), "little")

    def _add(self, sums: Sums) -> None:
        self._digest.update(sums.astype("<u8", copy=False).tobytes())


class BlockSummer:
    """How this process sums blocks: in C++ what lies in the host's memory, if that is there, else in torch."""

    def __init__(self, compiled: CpuBlockSums | None = None) -> None:
        self._compiled = compiled

    def checksum(self, memory: torch.Tensor, block_ids: Sequence[int], block_bytes: int) -> int:
        """Of an offer of these blocks. memory: uint8, 1-D, the owner's pool."""
        running = RunningChecksum(self._compiled, block_bytes)
        running.add(memory, block_ids)
        return running.value

    def begin(self, handle: KVHandle, cut: BlockCut) -> RunningChecksum | None:
        """For a pull of the handle's blocks; None where there is nothing to compare with."""
        if not handle.is_summed or not cut.is_whole:
            return None
        return RunningChecksum(self._compiled, cut.source_block_bytes)


def start_summer(settings: TransferSettings, device: torch.device) -> BlockSummer | None:
    """What the settings ask for, for pools on this device; None: nothing is summed."""
    if settings.checksum == "off":
        return None
    library = cpu_build.load() if device.type == "cpu" else None
    if library is None and settings.checksum == "auto":
        return None
    return BlockSummer(None if library is None else CpuBlockSums(library))


def _sums(compiled: CpuBlockSums | None, memory: torch.Tensor, block_ids: Sequence[int], block_bytes: int) -> Sums:
    if compiled is None or memory.device.type != "cpu":
        return block_sums(memory, block_ids, block_bytes)
    return compiled.sums(memory.numpy(), block_ids, block_bytes)
