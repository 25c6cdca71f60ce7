"""KV between hosts: one-sided reads through NIXL, with the owner's head as the fence.

The owner registers head and blocks and is not asked again; over TCP a thread of it serves the reads. The puller keeps a
mirror of the head, refreshes the offer's slot in it before the first block and after the last, and finds there what a
reader of shared memory would.

Blocks come into a staging buffer first. A read that is given up cannot be called back, and may write when its target
has long another owner; so a read targets nothing but staging, and a buffer whose read was given up is set aside until
that read has ended.

Knows no Redis and no policy.
"""

import mmap
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import msgspec
import torch

from errors import DeviceError, KVTransferFailed
from kv_transfer.checksum import BlockSummer, RunningChecksum
from kv_transfer.copy_runs import BlockCut, merge_runs
from kv_transfer.driver import CopyWithin
from kv_transfer.faults import TransferFaults
from kv_transfer.nixl_agent import NixlAgent, Piece, Registered, RemoteMemory, Unfinished
from kv_transfer.offer_check import OfferGone, check_offer, check_places
from kv_transfer.pool_export import PoolHead, layout_digest
from kv_transfer.published_sum import wait_for_sum
from kv_transfer.staging import unstage
from messages.kv_transfer import KVHandle, PoolExport

VERSION = 1
_BUSY_S, _IDLE_S = 0.0005, 0.01  # how often reads of others are served while anything is on offer, and else


class NixlAddress(msgspec.Struct, frozen=True, array_like=True):
    """What an owner says of itself."""

    version: int
    agent: bytes
    head_address: int
    head_bytes: int
    data_address: int
    data_bytes: int
    memory: str  # of the blocks: DRAM or VRAM
    device_id: int


class NixlExporter:
    """An owner's pool, readable from other hosts."""

    kind = "nixl"

    def __init__(
        self, agent: NixlAgent, head: mmap.mmap, head_bytes: int, data: torch.Tensor, is_busy: Callable[[], bool]
    ) -> None:
        """`head`, `head_bytes`: `KVSender.head`; data: uint8, all blocks; `is_busy`: whether there are offers.

        Raises DeviceError.
        """
        self._agent = agent
        self._is_busy = is_busy
        self._closing = threading.Event()
        self._head = agent.register(torch.frombuffer(head, dtype=torch.uint8, count=head_bytes))
        self._data = agent.register(data)
        self.address = msgspec.msgpack.encode(
            NixlAddress(
                VERSION,
                agent.metadata(),
                self._head.address,
                self._head.num_bytes,
                self._data.address,
                self._data.num_bytes,
                self._data.kind,
                self._data.device_id,
            )
        )
        self._thread = threading.Thread(target=self._serve, name="nixl-progress", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._closing.wait(_BUSY_S if self._is_busy() else _IDLE_S):
            self._agent.progress()

    def close(self) -> None:
        """See Exporter."""
        self._closing.set()
        self._thread.join()
        for memory in (self._head, self._data):
            self._agent.deregister(memory)


@dataclass(eq=False, slots=True)
class _Owner:
    """A connected owner and our mirror of its head."""

    peer: str
    address: NixlAddress
    mirror: Registered
    head: PoolHead
    lock: threading.Lock = field(default_factory=threading.Lock)  # the mirror serves one pull at a time


class NixlPuller:
    """Reads offered blocks of owners on other hosts."""

    kind = "nixl"

    def __init__(
        self,
        agent: NixlAgent,
        layout_hash: str,
        cut: BlockCut,
        unstage: CopyWithin,
        *,
        device: torch.device | None = None,
        staging_bytes: int = 32 << 20,
        timeout_s: float = 5.0,
        summer: BlockSummer | None = None,
        faults: TransferFaults | None = None,
    ) -> None:
        """`device`: where staging buffers lie; `timeout_s`: how long one read may take."""
        self._agent = agent
        self._layout_digest = layout_digest(layout_hash)
        self._cut = cut
        self._block_bytes = cut.source_block_bytes
        self._unstage = unstage
        self._device = device or torch.device("cpu")
        self._staging_blocks = max(1, staging_bytes // cut.source_block_bytes)
        self._timeout_s = timeout_s
        self._summer, self._faults = summer, faults
        self._lock = threading.Lock()
        self._owners: dict[tuple[str, int], _Owner] = {}  # by pool and epoch
        self._staging: list[Registered] = []  # free buffers
        self._set_aside: list[tuple[Unfinished, Registered]] = []

    def pull(self, export: PoolExport, handle: KVHandle, into: torch.Tensor, block_ids: Sequence[int]) -> None:
        """See Puller."""
        owner = self._owner(export)
        check_places(handle, owner.head.shape)
        checksum = self._summer.begin(handle, self._cut) if self._summer else None
        theirs: Sequence[int] = handle.block_ids
        try:
            with owner.lock:
                self._refresh(owner, handle)
                check_offer(handle, owner.head)
                if self._faults is not None:
                    self._faults.before_copy()
                    theirs, block_ids = self._faults.blocks(theirs, block_ids)
                self._read_blocks(owner, theirs, into, block_ids, checksum)
                if self._faults is not None:
                    self._faults.after_copy()
                self._refresh(owner, handle)
                check_offer(handle, owner.head)
                if checksum is not None:
                    refresh = partial(self._refresh, owner, handle)
                    checksum.check(handle.transfer_id, wait_for_sum(handle, owner.head, refresh=refresh))
        except OfferGone:
            raise
        except KVTransferFailed:
            self._forget(export)  # what fails or hangs once does so again; a new connection may not
            raise

    def prune(self) -> int:
        """See Puller. Nobody tells us of a dead owner before we read from it; what was set aside may be free again."""
        self._collect_ended()
        return 0

    def close(self) -> None:
        """See Puller."""
        with self._lock:
            owners, self._owners = list(self._owners.values()), {}
        for owner in owners:
            self._agent.disconnect(owner.peer)

    # -- owners --------------------------------------------------------------------------------------------------

    def _owner(self, export: PoolExport) -> _Owner:
        key = (export.pool, export.pool_epoch)
        with self._lock:
            if key not in self._owners:
                self._owners[key] = self._connect(export)
            return self._owners[key]

    def _connect(self, export: PoolExport) -> _Owner:
        try:
            address = msgspec.msgpack.decode(export.addresses[self.kind], type=NixlAddress)
        except (KeyError, msgspec.DecodeError) as error:
            raise KVTransferFailed(f"pool {export.pool}: no NIXL address, {error}") from error
        if address.version != VERSION or not 0 < address.head_bytes <= 64 << 20:
            raise KVTransferFailed(f"pool {export.pool}: NIXL address of version {address.version}")
        places = address.head_address, address.data_address, address.data_bytes, address.device_id
        if not all(0 <= place < 1 << 63 for place in places) or address.memory not in ("DRAM", "VRAM"):
            raise KVTransferFailed(f"pool {export.pool}: a NIXL address of no memory that there could be")
        peer = self._agent.connect(address.agent)
        mirror = self._agent.register(torch.zeros(address.head_bytes, dtype=torch.uint8))
        try:
            whole = [(address.head_address, address.head_bytes)]
            self._agent.read(peer, RemoteMemory("DRAM", 0), whole, mirror, 0, self._timeout_s)
            head = PoolHead.read(memoryview(mirror.tensor.numpy()))  # type: ignore[arg-type]  # numpy's is a Buffer at run time
            shape = head.shape
            if shape.epoch != export.pool_epoch:
                raise KVTransferFailed(f"pool {export.pool} has epoch {shape.epoch}, its export {export.pool_epoch}")
            if shape.layout_digest != self._layout_digest or shape.block_bytes != self._block_bytes:
                raise KVTransferFailed(f"pool {export.pool} has another KV layout, {shape.block_bytes} bytes a block")
            if shape.data_bytes != address.data_bytes:
                raise KVTransferFailed(f"pool {export.pool} has not the size that its head says")
        except Unfinished as hangs:
            self._disconnect(peer)
            self._set_aside.append((hangs, mirror))
            raise
        except KVTransferFailed:
            self._disconnect(peer)
            self._agent.deregister(mirror)
            raise
        return _Owner(peer, address, mirror, head)

    def _forget(self, export: PoolExport) -> None:
        with self._lock:
            owner = self._owners.pop((export.pool, export.pool_epoch), None)
            if owner is not None:
                self._disconnect(owner.peer)

    def _disconnect(self, peer: str) -> None:
        """Unless a pool that we read from is the same agent's: an export with a wrong epoch must not cut it off."""
        if all(owner.peer != peer for owner in self._owners.values()):
            self._agent.disconnect(peer)

    # -- reads ---------------------------------------------------------------------------------------------------

    def _refresh(self, owner: _Owner, handle: KVHandle) -> None:
        """Read the handle's slot into the mirror."""
        first, num_bytes = owner.head.slot_place(handle.slot)
        source = [(owner.address.head_address + first, num_bytes)]
        try:
            self._agent.read(owner.peer, RemoteMemory("DRAM", 0), source, owner.mirror, first, self._timeout_s)
        except Unfinished as hangs:
            self._set_aside.append((hangs, owner.mirror))
            raise

    def _read_blocks(
        self,
        owner: _Owner,
        source_ids: Sequence[int],
        into: torch.Tensor,
        block_ids: Sequence[int],
        checksum: RunningChecksum | None,
    ) -> None:
        remote = RemoteMemory(owner.address.memory, owner.address.device_id)
        target = into.detach().reshape(-1).view(torch.uint8)
        for first in range(0, len(block_ids), self._staging_blocks):
            theirs = source_ids[first : first + self._staging_blocks]
            ours = block_ids[first : first + self._staging_blocks]
            staging = self._take_staging()
            try:
                self._agent.read(owner.peer, remote, self._pieces(owner, theirs), staging, 0, self._timeout_s)
            except Unfinished as hangs:
                self._set_aside.append((hangs, staging))
                raise
            except KVTransferFailed:
                self._staging.append(staging)
                raise
            if self._faults is not None:
                self._faults.arrived(staging.tensor[: len(ours) * self._block_bytes])
            unstage(self._unstage, staging.tensor, target, ours, self._cut, checksum)
            self._staging.append(staging)

    def _pieces(self, owner: _Owner, block_ids: Sequence[int]) -> list[Piece]:
        """Where the blocks lie at the owner's; neighbours are one piece."""
        runs = merge_runs(block_ids, range(len(block_ids)), self._block_bytes)
        return [(owner.address.data_address + run.source_byte, run.num_bytes) for run in runs]

    def _take_staging(self) -> Registered:
        self._collect_ended()
        try:
            return self._staging.pop()
        except IndexError:
            num_bytes = self._staging_blocks * self._block_bytes
            try:
                return self._agent.register(torch.empty(num_bytes, dtype=torch.uint8, device=self._device))
            except (DeviceError, torch.OutOfMemoryError) as error:
                raise KVTransferFailed(f"no staging buffer of {num_bytes} bytes: {error}") from error

    def _collect_ended(self) -> None:
        """Take back the buffers whose reads have ended after all."""
        waiting, self._set_aside = self._set_aside, []
        for hangs, buffer in waiting:
            if not hangs.has_ended():
                self._set_aside.append((hangs, buffer))
            elif buffer.num_bytes == self._staging_blocks * self._block_bytes and buffer.tensor.device == self._device:
                self._staging.append(buffer)
            else:
                self._agent.deregister(buffer)
