"""KV between hosts through process groups, at the owner: whoever connects gets a group of two and is served in it.

One thread takes connections, one per puller serves it. A request is answered with blocks only while its offer stands,
copied to a staging buffer first; whether it still stood after that copy is said behind the blocks. A puller that dies,
stops or talks nonsense loses its own pair and disturbs nobody else's.

Knows no Redis, no policy and no torch.distributed (pair_group.py).
"""

import hmac
import mmap
import secrets
import socket
import threading

import msgspec
import torch

from errors import DeviceError, KVTransferFailed
from kv_transfer.copy_runs import BlockCopies, whole_blocks
from kv_transfer.driver import CopyWithin
from kv_transfer.offer_check import OfferGone, check_offer
from kv_transfer.pair_channel import Answer, Hello, PairChannel, Request
from kv_transfer.pair_group import Backend, PairGroup, check_backend
from kv_transfer.pool_export import PoolHead, fence, layout_digest
from kv_transfer.published_sum import wait_for_sum
from kv_transfer.staging import StagingBuffers
from messages.kv_transfer import KVHandle
from telemetry import get_logger

log = get_logger()

VERSION = 1
TORCH_VERSION = torch.__version__.partition("+")[0]  # without what it was built for
_MAX_PAIRS = 64  # three threads and six descriptors each; with NCCL, memory of the GPU besides


class PairAddress(msgspec.Struct, frozen=True, array_like=True):
    """What an owner says of itself."""

    version: int
    torch_version: str  # both ends need the same: what two groups say to each other is torch's own
    host: str
    port: int
    token: bytes  # who has it has read the registry, and may ask


class PairExporter:
    """An owner's pool, served to other hosts."""

    def __init__(
        self,
        backend: Backend,
        head: mmap.mmap,
        data: torch.Tensor,
        copy_within: CopyWithin,
        *,
        host: str,
        staging_bytes: int = 32 << 20,
        timeout_s: float = 5.0,
    ) -> None:
        """`head`: the mapping that begins with the pool's; data: uint8, all blocks; `host`: the address to listen on.

        Raises DeviceError when there is no such backend or address.
        """
        check_backend(backend)
        self.kind = backend
        self._backend: Backend = backend
        self._head = PoolHead.read(head)
        self._data = data
        self._copy_within = copy_within
        self._timeout_s = timeout_s
        self._staging = StagingBuffers(staging_bytes, self._head.shape.block_bytes, data.device)
        self._token = secrets.token_bytes(16)
        self._lock = threading.Lock()
        self._pairs: dict[threading.Thread, PairChannel] = {}
        self._closing = threading.Event()
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._listener = socket.create_server((host, 0), family=family, backlog=_MAX_PAIRS)
        except OSError as error:
            raise DeviceError(f"cannot listen on PDQ_KV_TRANSFER__ADDRESS, {host!r}: {error}") from error
        port = self._listener.getsockname()[1]
        self.address = msgspec.msgpack.encode(PairAddress(VERSION, TORCH_VERSION, host, port, self._token))
        self._thread = threading.Thread(target=self._accept, name="kv-pairs", daemon=True)
        self._thread.start()

    @property
    def num_pairs(self) -> int:
        """Pullers that are connected."""
        return len(self._pairs)

    def close(self) -> None:
        """See Exporter. Waits for what is being sent, for the time limit at most."""
        with self._lock:
            self._closing.set()
            pairs = list(self._pairs.items())
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept
        self._thread.join()
        self._listener.close()
        for _, channel in pairs:
            channel.interrupt()
        for thread, _ in pairs:
            thread.join()

    # -- pairs ---------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                if self._closing.wait(0.05):
                    return
                continue  # that one has left already, or there are no descriptors for the moment
            self._start_pair(connection)

    def _start_pair(self, connection: socket.socket) -> None:
        try:
            channel = PairChannel(connection, self._timeout_s)
        except OSError:  # it has left already
            connection.close()
            return
        with self._lock:
            if self._closing.is_set() or len(self._pairs) >= _MAX_PAIRS:
                channel.close()
                return
            thread = threading.Thread(target=self._serve, args=(channel,), name="kv-pair", daemon=True)
            self._pairs[thread] = channel
            thread.start()

    def _serve(self, channel: PairChannel) -> None:
        """One puller, until it leaves or fails."""
        group = None
        try:
            if not hmac.compare_digest(channel.receive(Hello).token, self._token):
                raise KVTransferFailed("not our token")
            channel.send(Answer())
            group = PairGroup(self._backend, channel, 0, self._data.device)
            while True:
                self._answer(channel, group, channel.receive(Request, is_idle=True))
        except KVTransferFailed as error:
            log.info("kv_pair_ended", kind=self.kind, puller=channel.peer_address, reason=str(error))
        finally:
            if group is not None:
                group.abort()
            channel.close()
            with self._lock:
                del self._pairs[threading.current_thread()]

    # -- requests ------------------------------------------------------------------------------------------------

    def _answer(self, channel: PairChannel, group: PairGroup, request: Request) -> None:
        """Raises KVTransferFailed when the pair is of no more use."""
        handle = request.handle
        max_blocks = min(request.max_blocks, self._staging.num_blocks)
        try:
            if max_blocks < 1:
                raise KVTransferFailed(f"a request for {request.max_blocks} blocks at a time")
            self._check(handle)
        except KVTransferFailed as error:
            channel.send(_refusal(error))
            return
        channel.send(Answer(max_blocks=max_blocks))
        staging = self._staging.take()
        for first in range(0, len(handle.block_ids), max_blocks):
            block_ids = handle.block_ids[first : first + max_blocks]
            copies = BlockCopies(whole_blocks(self._head.shape.block_bytes), block_ids, range(len(block_ids)))
            fence()
            self._copy_within(self._data, staging, copies)
            fence()
            group.send([staging[: len(block_ids) * self._head.shape.block_bytes]])
        self._staging.give_back(staging)
        try:
            self._check(handle)
            checksum = wait_for_sum(handle, self._head) if handle.is_summed else None
        except KVTransferFailed as error:
            channel.send(_refusal(error))
        else:
            channel.send(Answer(checksum=checksum))

    def _check(self, handle: KVHandle) -> None:
        """Raises KVTransferFailed unless the handle is one of this pool and its offer stands right now."""
        shape = self._head.shape
        if handle.pool_epoch != shape.epoch:
            raise KVTransferFailed(f"the pool has epoch {shape.epoch}, the handle {handle.pool_epoch}")
        if layout_digest(handle.layout_hash) != shape.layout_digest:
            raise KVTransferFailed(f"the pool has another KV layout, {shape.block_bytes} bytes a block")
        check_offer(handle, self._head)


def _refusal(error: KVTransferFailed) -> Answer:
    return Answer(str(error), is_gone=isinstance(error, OfferGone))
