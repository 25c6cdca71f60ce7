"""The puller's end of the KV transfer: check a handle, choose a transport, pull.

Checks what does not depend on the transport, tries the transports that selection.py names, and keeps count. Does not
know where handles come from, nor whom to tell afterwards.
"""

import time
from collections.abc import Callable, Sequence

import torch

from errors import KVTransferFailed
from kv_transfer.checksum import BlockSummer
from kv_transfer.copy_runs import BlockCut, whole_blocks
from kv_transfer.driver import Driver
from kv_transfer.faults import TransferFaults
from kv_transfer.host import host_id
from kv_transfer.mapped_puller import MappedPuller
from kv_transfer.offer_check import OfferGone
from kv_transfer.selection import Place, transports
from kv_transfer.shared_memory import ShmDriver
from kv_transfer.transport import Puller
from messages.kv_transfer import KVHandle, PoolExport, TransferCount
from telemetry import get_logger

log = get_logger()

_MOST_PAIRS = 256  # owners come and go; of those that are long gone nothing is kept
_RETRY_S = 30.0  # how long a transport that failed for an owner is not tried for it again


class KVReceiver:
    """Pulls offered blocks. Safe to call from several threads."""

    def __init__(
        self,
        layout_hash: str,
        block_bytes: int,
        driver: Driver | None = None,
        max_mappings: int = 64,
        *,
        network: Sequence[Puller] = (),
        place: Place | None = None,
        require: str | None = None,
        cut: BlockCut | None = None,
        summer: BlockSummer | None = None,
        faults: TransferFaults | None = None,
        between_slices: Callable[[], object] | None = None,
    ) -> None:
        """`block_bytes`: of the owner; `driver`: of the host's transport; `network`: pullers of other hosts;
        `require`: the only kind allowed; `cut`: what of a block is wanted, if not all of it; `summer`: compares what
        arrives with the handle's checksum; `faults`: of the host's transport; `between_slices`: see
        MappedPuller.
        """
        self._layout_hash = layout_hash
        self._block_bytes = block_bytes
        self._cut = cut or whole_blocks(block_bytes)
        self._mapped = MappedPuller(
            driver or ShmDriver(),
            layout_hash,
            self._cut,
            max_mappings,
            summer=summer,
            faults=faults,
            between_slices=between_slices,
        )
        self._pullers: dict[str, Puller] = {puller.kind: puller for puller in (self._mapped, *network)}
        self._place = place or Place(host_id())
        self._require = require
        self._failed: dict[tuple[str, str], float] = {}  # (pool, kind) -> when it may be tried again
        self._chosen: dict[str, str] = {}  # pool -> kind, as it was logged
        self.counts = {kind: TransferCount() for kind in self._pullers}
        self.pairs: dict[tuple[str, str], int] = {}  # (owner, kind) -> pulls; whom we have met last comes last

    @property
    def num_mappings(self) -> int:
        """Pools that are mapped at the moment."""
        return self._mapped.num_mappings

    def pull(
        self,
        handle: KVHandle,
        into: torch.Tensor,
        block_ids: Sequence[int],
        export: PoolExport | None = None,
        request_id: str = "",
    ) -> None:
        """Copy the handle's blocks, in order, to `block_ids` of our own pool `into`; blocks the calling thread.

        `into` is the whole pool, contiguous: uint8 [num_blocks, block_bytes], or any shape and dtype of that many
        bytes. `export` is what the owner says of its pool; without it the owner is taken to be on this host.
        `request_id` is for the log alone. Raises KVTransferFailed with the reason when the handle does not fit, its
        offer no longer stands or its owner cannot be reached; our blocks may then hold anything. Raises ValueError
        when `into` or `block_ids` cannot be written.
        """
        self._check_target(into, block_ids)
        if handle.layout_hash != self._layout_hash:
            raise KVTransferFailed(f"the KV layout is {handle.layout_hash[:80]!r}, ours is {self._layout_hash!r}")
        if len(handle.block_ids) != len(block_ids):
            raise KVTransferFailed(f"the handle has {len(handle.block_ids)} blocks, {len(block_ids)} were expected")
        if export is None or (export.pool, export.pool_epoch) != (handle.pool, handle.pool_epoch):
            export = _on_this_host(handle, self._place, self._block_bytes)
        kinds = transports(self._place, export, self._pullers, self._require)
        usable = [kind for kind in kinds if self._failed.get((export.pool, kind), 0.0) <= time.monotonic()] or kinds
        if not usable:
            only = f" by {self._require} alone" if self._require else ""
            raise KVTransferFailed(f"pool {export.pool} on {export.host_id[:80]} cannot be reached{only}")
        for kind in usable:
            try:
                self._pullers[kind].pull(export, handle, into, block_ids)
            except OfferGone:
                raise
            except KVTransferFailed as error:
                self.counts[kind] = self.counts[kind].plus(failures=1)
                self._failed[export.pool, kind] = time.monotonic() + _RETRY_S
                if kind == usable[-1]:
                    raise
                log.warning(
                    "kv_transport_failed", request_id=request_id, pool=export.pool, kind=kind, reason=str(error)
                )
            else:
                self.counts[kind] = self.counts[kind].plus(pulls=1, num_bytes=len(block_ids) * self._block_bytes)
                self._note_pair(export.worker_id, kind)
                if self._chosen.get(export.pool) != kind:
                    self._chosen[export.pool] = kind
                    log.info("kv_transport_chosen", owner=export.worker_id, pool=export.pool, kind=kind)
                return

    def _note_pair(self, owner: str, kind: str) -> None:
        pair = (owner, kind)
        self.pairs[pair] = self.pairs.pop(pair, 0) + 1
        if len(self.pairs) > _MOST_PAIRS:
            del self.pairs[next(iter(self.pairs))]

    def prune(self) -> int:
        """Drop what is kept of dead owners; of how many."""
        return sum(puller.prune() for puller in self._pullers.values())

    def close(self) -> None:
        """Let go of every owner. A pull that still runs ends undisturbed, or fails."""
        for puller in self._pullers.values():
            puller.close()

    def _check_target(self, into: torch.Tensor, block_ids: Sequence[int]) -> None:
        if not into.is_contiguous():
            raise ValueError("the pool to pull into must be contiguous")
        num_bytes = into.numel() * into.element_size()
        block_bytes = self._cut.target_block_bytes
        num_blocks = num_bytes // block_bytes
        if num_bytes % block_bytes or not all(0 <= block_id < num_blocks for block_id in block_ids):
            raise ValueError(
                f"not all of the {len(block_ids)} blocks to pull into are in a pool of {num_bytes} bytes, "
                f"{block_bytes} a block"
            )
        if len(set(block_ids)) != len(block_ids):
            raise ValueError("the same block twice to pull into")


def _on_this_host(handle: KVHandle, place: Place, block_bytes: int) -> PoolExport:
    """What can be said of a pool whose owner says nothing (any more): its name, and that it might be mapped."""
    return PoolExport(
        worker_id=handle.worker_id,
        pool=handle.pool,
        pool_epoch=handle.pool_epoch,
        host_id=place.host_id,
        device=place.device,
        block_bytes=block_bytes,
        num_blocks=0,
    )
