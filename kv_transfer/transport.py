"""The seam between "pull this handle" and the way the bytes travel.

An owner exports its pool once: the head in a host segment (pool_export.py), the blocks where the engine computes, and
for each transport it offers an address. A puller is one transport's way to fetch offered blocks from an export. Every
transport keeps the same promise: when `pull` returns, each byte was copied while the offer stood (the slot's
generation was the handle's before and after). Knows no Redis, no policy (selection.py) and no device.
"""

from collections.abc import Sequence
from typing import Protocol

import torch

from messages.kv_transfer import KVHandle, PoolExport


class Puller(Protocol):
    """One transport, at the receiver. Safe to call from several threads."""

    @property
    def kind(self) -> str:
        """The transport's name in settings, logs and metrics: one of `settings.kv.TransportKind`."""

    def pull(self, export: PoolExport, handle: KVHandle, into: torch.Tensor, block_ids: Sequence[int]) -> None:
        """Copy the handle's blocks, in order, to `block_ids` of the pool `into`; blocks the calling thread.

        The caller has checked layout, counts and our own ids; everything else that handle and export say is not
        trusted. Raises KVTransferFailed when the offer does not stand or the owner cannot be reached within the
        transport's time limit; our blocks may then hold anything.
        """

    def prune(self) -> int:
        """Let go of dead owners; of how many."""

    def close(self) -> None:
        """Let go of every owner. A pull that still runs ends, with or without success."""


class Exporter(Protocol):
    """One transport, at the owner: makes an exported pool reachable."""

    @property
    def kind(self) -> str:
        """As `Puller.kind`."""

    @property
    def address(self) -> bytes:
        """What a puller of this kind needs to reach the pool; at most 64 KiB, goes into `PoolExport.addresses`."""

    def close(self) -> None:
        """No longer reachable."""
