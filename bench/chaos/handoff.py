"""Both ends of a handoff in one process, over tiny pools: what `handoff_faults.py` does its mischief to.

A handle goes a worker's way: sealed by its owner for its job, checked against the job before anything of it is used,
then pulled. Knows transports and seals; knows no fault.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Timer

import torch

from kv_transfer.checksum import BlockSummer
from kv_transfer.copy_runs import whole_blocks
from kv_transfer.cuda_ipc import CudaIpcDriver
from kv_transfer.driver import Driver
from kv_transfer.faults import IdPairs
from kv_transfer.host_copy import copy_on_host
from kv_transfer.nixl_agent import NixlAgent
from kv_transfer.nixl_transport import NixlExporter, NixlPuller
from kv_transfer.pair_exporter import PairExporter
from kv_transfer.pair_puller import PairPuller
from kv_transfer.receiver import KVReceiver
from kv_transfer.seal import NotAuthentic, Seal
from kv_transfer.selection import Place
from kv_transfer.sender import KVSender
from kv_transfer.shared_memory import ShmDriver
from kv_transfer.transport import Exporter, Puller
from messages.kv_transfer import KVHandle, PoolExport
from settings.kv import TransportKind

NUM_BLOCKS, BLOCK_BYTES, MAX_OFFERS = 16, 259, 4  # blocks begin on odd addresses
LAYOUT = "layout of the chaos bench"
HERE = "this host"
MAPPED = ("shared_memory", "cuda_ipc")
_STAGING_BYTES = 3 * BLOCK_BYTES  # so that most pulls take several messages


@dataclass
class Mischief:
    """`TransferFaults` as they are set for one pull."""

    before: Callable[[], object] | None = None
    after: Callable[[], object] | None = None
    choose: Callable[[Sequence[int], Sequence[int]], IdPairs] | None = None
    spoil: Callable[[torch.Tensor], object] | None = None

    def clear(self) -> None:
        """No fault any more."""
        self.before = self.after = self.choose = self.spoil = None

    def before_copy(self) -> None:
        """See TransferFaults."""
        if self.before is not None:
            self.before()

    def blocks(self, source_ids: Sequence[int], target_ids: Sequence[int]) -> IdPairs:
        """See TransferFaults."""
        return (source_ids, target_ids) if self.choose is None else self.choose(source_ids, target_ids)

    def arrived(self, staging: torch.Tensor) -> None:
        """See TransferFaults."""
        if self.spoil is not None:
            self.spoil(staging)

    def after_copy(self) -> None:
        """See TransferFaults."""
        if self.after is not None:
            self.after()


@dataclass(frozen=True, slots=True)
class Job:
    """What a decode worker has: a handle, and the job that it came with."""

    handle: KVHandle
    request_id: str
    choice: int = 0
    hop: int = 1


class Owner:
    """A sender whose pool can be reached, under the worker id that every owner here has."""

    def __init__(
        self,
        kind: TransportKind,
        driver: Driver,
        summer: BlockSummer | None,
        layout: str,
        block_bytes: int,
        agent: NixlAgent | None,
    ) -> None:
        self.sender = KVSender.create("chaos", NUM_BLOCKS, block_bytes, layout, MAX_OFFERS, driver, summer)
        self.blocks = self.sender.buffer.view(NUM_BLOCKS, block_bytes)
        self.exporter: Exporter | None = None
        if agent is not None:
            self.exporter = NixlExporter(agent, *self.sender.head, self.sender.buffer, lambda: True)
        elif kind == "gloo":
            self.exporter = PairExporter(
                "gloo", self.sender.head[0], self.sender.buffer, copy_on_host, host="127.0.0.1"
            )
        self.fill(range(NUM_BLOCKS))

    def export(self, device: str) -> PoolExport:
        """What it says of its pool."""
        exporters = [] if self.exporter is None else [self.exporter]
        return self.sender.export(HERE, device, {exporter.kind: exporter.address for exporter in exporters})

    def fill(self, block_ids: Sequence[int]) -> None:
        """Other KV in these blocks, whether they are on offer or not."""
        size = len(block_ids), self.blocks.shape[1]
        self.blocks[list(block_ids)] = torch.randint(0, 256, size, dtype=torch.uint8)

    def close(self) -> None:
        """What it offered is withdrawn, and its pool is gone."""
        if self.exporter is not None:
            self.exporter.close()
        self.sender.close()


@dataclass
class Handoff:
    """An owner and a receiver, joined by one transport and no other."""

    kind: TransportKind
    driver: ShmDriver | CudaIpcDriver  # of the pools
    summer: BlockSummer | None
    device: str = "cpu"  # where the blocks lie, as PoolExport.device
    receiver_driver: Driver | None = None  # where it is not the same
    mischief: Mischief = field(default_factory=Mischief)
    seal: Seal = field(default_factory=lambda: Seal(b"secret of the chaos bench"))
    num_offers: int = 0

    def __post_init__(self) -> None:
        cut = whole_blocks(BLOCK_BYTES)
        network: list[Puller] = []
        self.agent: NixlAgent | None = None
        if self.kind == "nixl":
            self.agent, ours = NixlAgent("chaos-owner"), NixlAgent("chaos-receiver")
            network.append(
                NixlPuller(
                    ours,
                    LAYOUT,
                    cut,
                    copy_on_host,
                    staging_bytes=_STAGING_BYTES,
                    summer=self.summer,
                    faults=self.mischief,
                )
            )
        elif self.kind == "gloo":
            network.append(
                PairPuller(
                    "gloo", cut, copy_on_host, staging_bytes=_STAGING_BYTES, summer=self.summer, faults=self.mischief
                )
            )
        self.receiver = KVReceiver(
            LAYOUT,
            BLOCK_BYTES,
            self.receiver_driver or self.driver,
            network=network,
            place=Place(HERE if self.is_mapped else "another host", self.device),
            require=self.kind,
            summer=self.summer,
            faults=self.mischief,
        )
        self._open: list[tuple[KVSender, str]] = []
        self.pool = torch.zeros(NUM_BLOCKS, BLOCK_BYTES, dtype=torch.uint8)
        self.start_owner()

    @property
    def is_mapped(self) -> bool:
        """Whether the receiver maps the owner's pool."""
        return self.kind in MAPPED

    def start_owner(self) -> None:
        """A new owner."""
        self.owner = self.new_owner()
        self.export = self.seal.seal_export(self.owner.export(self.device))

    def new_owner(self, layout: str = LAYOUT, block_bytes: int = BLOCK_BYTES) -> Owner:
        """Another one, for the caller to close."""
        return Owner(self.kind, self.driver, self.summer, layout, block_bytes, self.agent)

    def offer(self, block_ids: Sequence[int], owner: Owner | None = None) -> Job:
        """Blocks on offer, by the present owner unless another is named, for a job of their own."""
        self.num_offers += 1
        sender = (owner or self.owner).sender
        transfer_id = f"transfer-{self.num_offers}"
        handle = sender.offer(transfer_id, list(block_ids), 16 * len(block_ids), sums_follow=True)
        if handle.is_summed:  # as a worker's, the checksum comes after the offer, mostly before the bytes are copied
            checksums = sender.checksums(block_ids)
            Timer(self.num_offers % 4 * 0.0005, sender.put_checksums, (transfer_id, checksums)).start()
        self._open.append((sender, handle.transfer_id))
        return self.sealed(Job(handle, f"request-{self.num_offers}"))

    def withdraw_all(self) -> None:
        """Nothing is on offer any more."""
        for sender, transfer_id in self._open:
            sender.withdraw(transfer_id)
        self._open.clear()

    def sealed(self, job: Job) -> Job:
        """The job with its handle sealed as it is: what an owner that is wrong would send, and no forger could."""
        handle = self.seal.seal_handle(job.handle, job.request_id, job.choice, job.hop)
        return Job(handle, job.request_id, job.choice, job.hop)

    def take(self, job: Job, targets: Sequence[int], export: PoolExport | None) -> torch.Tensor:
        """As a decode worker does: check, then pull into our blocks `targets`. Their bytes. Raises KVTransferFailed."""
        self.seal.check_handle(job.handle, job.request_id, job.choice, job.hop)
        if export is not None:
            try:
                self.seal.check_export(export)
            except NotAuthentic:
                export = None
        self.receiver.pull(job.handle, self.pool, targets, export)
        return self.pool[list(targets)]

    def close(self) -> None:
        """End both."""
        self.receiver.close()
        self.owner.close()
