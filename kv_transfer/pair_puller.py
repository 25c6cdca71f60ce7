"""KV between hosts through process groups, at the puller: a pair with every owner that was asked, one pull at a time.

Blocks come into a staging buffer first: whatever a group that is given up may still do, it does not write into the
pool. A pair in which anything failed is ended, and the next pull makes another one.

Knows no Redis, no policy and no torch.distributed (pair_group.py).
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import msgspec
import torch

from errors import KVTransferFailed
from kv_transfer.checksum import BlockSummer
from kv_transfer.copy_runs import BlockCut
from kv_transfer.driver import CopyWithin
from kv_transfer.faults import TransferFaults
from kv_transfer.offer_check import OfferGone
from kv_transfer.pair_channel import Answer, Hello, PairChannel, Request
from kv_transfer.pair_exporter import TORCH_VERSION, VERSION, PairAddress
from kv_transfer.pair_group import Backend, PairGroup, check_backend
from kv_transfer.staging import StagingBuffers, unstage
from messages.kv_transfer import KVHandle, PoolExport


@dataclass(eq=False, slots=True)
class _Pair:
    """What we have with an owner; channel and group while it is connected."""

    lock: threading.Lock = field(default_factory=threading.Lock)  # the holder uses it
    channel: PairChannel | None = None
    group: PairGroup | None = None

    def end(self) -> None:
        """Harmless when repeated."""
        group, self.group = self.group, None
        channel, self.channel = self.channel, None
        if group is not None:
            group.abort()
        if channel is not None:
            channel.close()


class PairPuller:
    """Pulls offered blocks of owners on other hosts."""

    def __init__(
        self,
        backend: Backend,
        cut: BlockCut,
        copy_within: CopyWithin,
        *,
        device: torch.device | None = None,
        staging_bytes: int = 32 << 20,
        timeout_s: float = 5.0,
        summer: BlockSummer | None = None,
        faults: TransferFaults | None = None,
    ) -> None:
        """`device`: where staging buffers lie; `timeout_s`: how long a peer may say nothing. Raises DeviceError."""
        check_backend(backend)
        self.kind = backend
        self._backend: Backend = backend
        self._cut = cut
        self._block_bytes = cut.source_block_bytes
        self._copy_within = copy_within
        self._device = device or torch.device("cpu")
        self._timeout_s = timeout_s
        self._summer, self._faults = summer, faults
        self._staging = StagingBuffers(staging_bytes, cut.source_block_bytes, self._device)
        self._lock = threading.Lock()
        self._pairs: dict[tuple[str, int], _Pair] = {}  # by pool and epoch
        self._is_closed = False

    def pull(self, export: PoolExport, handle: KVHandle, into: torch.Tensor, block_ids: Sequence[int]) -> None:
        """See Puller."""
        checksum = self._summer.begin(handle, self._cut) if self._summer else None
        with self._connected(export) as (channel, group):
            channel.send(Request(handle, self._staging.num_blocks))
            max_blocks = _agreed(channel).max_blocks
            if not 1 <= max_blocks <= self._staging.num_blocks:
                raise KVTransferFailed(f"pool {export.pool}: its owner sends {max_blocks} blocks at a time")
            target = into.detach().reshape(-1).view(torch.uint8)
            if self._faults is not None:
                self._faults.before_copy()
            staging = self._staging.take()
            for first in range(0, len(block_ids), max_blocks):
                ours = block_ids[first : first + max_blocks]
                arriving = staging[: len(ours) * self._block_bytes]
                group.receive([arriving])
                if self._faults is not None:
                    self._faults.arrived(arriving)
                unstage(self._copy_within, staging, target, ours, self._cut, checksum)
            self._staging.give_back(staging)
            if self._faults is not None:
                self._faults.after_copy()
            expected = _agreed(channel).checksum
        if checksum is not None:
            if expected is None:
                raise KVTransferFailed(f"pool {export.pool}: its owner does not say what was offered")
            checksum.check(handle.transfer_id, expected)

    def prune(self) -> int:
        """See Puller."""
        num_ended = 0
        for pair in list(self._pairs.values()):
            if pair.lock.acquire(blocking=False):
                try:
                    if pair.channel is not None and not pair.channel.is_quiet():
                        pair.end()
                        num_ended += 1
                finally:
                    pair.lock.release()
        return num_ended

    def close(self) -> None:
        """See Puller. Waits for pulls that still run, which end within the time limit."""
        with self._lock:
            self._is_closed = True
            pairs, self._pairs = list(self._pairs.values()), {}
        for pair in pairs:
            if (channel := pair.channel) is not None:
                channel.interrupt()
            with pair.lock:
                pair.end()

    # -- pairs ---------------------------------------------------------------------------------------------------

    @contextmanager
    def _connected(self, export: PoolExport) -> Iterator[tuple[PairChannel, PairGroup]]:
        """The pair with an owner, for one pull. It lasts when that succeeds, or ends with the offer being gone."""
        pair = self._pair(export)
        if not pair.lock.acquire(timeout=self._timeout_s):
            raise KVTransferFailed(f"pool {export.pool}: other pulls from it take longer than {self._timeout_s:g} s")
        is_in_step = False
        try:
            if self._is_closed:
                raise KVTransferFailed(f"pool {export.pool}: the transport is closed")
            if pair.channel is not None and not pair.channel.is_quiet():
                pair.end()  # the owner has ended it, maybe because we have been stopped for a while
            if pair.channel is None or pair.group is None:
                self._connect(pair, export)
            assert pair.channel is not None and pair.group is not None
            yield pair.channel, pair.group
            is_in_step = True
        except OfferGone:
            is_in_step = True
            raise
        finally:
            if not is_in_step:
                pair.end()
            pair.lock.release()

    def _pair(self, export: PoolExport) -> _Pair:
        with self._lock:
            return self._pairs.setdefault((export.pool, export.pool_epoch), _Pair())

    def _connect(self, pair: _Pair, export: PoolExport) -> None:
        try:
            address = msgspec.msgpack.decode(export.addresses[self.kind], type=PairAddress)
        except (KeyError, msgspec.DecodeError) as error:
            raise KVTransferFailed(f"pool {export.pool}: no {self.kind} address, {error}") from error
        if address.version != VERSION or address.torch_version != TORCH_VERSION:
            theirs = f"version {address.version} of torch {address.torch_version[:40]}"
            raise KVTransferFailed(f"pool {export.pool}: a {self.kind} address of {theirs}, ours is {TORCH_VERSION}")
        if export.block_bytes != self._block_bytes:
            raise KVTransferFailed(f"pool {export.pool} has another KV layout, {export.block_bytes} bytes a block")
        channel = pair.channel = PairChannel.connect(address.host, address.port, self._timeout_s)
        channel.send(Hello(address.token))
        _agreed(channel)
        pair.group = PairGroup(self._backend, channel, 1, self._device)


def _agreed(channel: PairChannel) -> Answer:
    """The owner's answer, when it is yes. Raises OfferGone or KVTransferFailed with its reason."""
    answer = channel.receive(Answer)
    if answer.refusal:
        raise (OfferGone if answer.is_gone else KVTransferFailed)(answer.refusal[:200])
    return answer
