"""A process group of two, Gloo's or NCCL's, built over a channel of its own and thrown away when anything fails.

torch's groups are built directly: `init_process_group` and `new_group` need every rank of a world to take part, and
workers come and go. Nothing is waited for longer than the group's time limit, the building included. A group in which
anything failed is of no more use. Knows tensors; knows no pool and no protocol.
"""

import os
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import GroupName, Store

from errors import DeviceError, KVTransferFailed
from kv_transfer.pair_channel import PairChannel, StoreEntry

Backend = Literal["gloo", "nccl"]

_GLOO_ADDRESS_BYTES = 128 + 8  # sockaddr_storage, sequence number


def backend_for(device: torch.device) -> Backend:
    """NCCL moves the memory of GPUs alone; Gloo stands in for it on a CPU."""
    return "nccl" if device.type == "cuda" else "gloo"


def check_backend(backend: Backend) -> None:
    """Raises DeviceError where this torch has not been built with it."""
    is_there = dist.is_gloo_available() if backend == "gloo" else dist.is_nccl_available()
    if not is_there:
        raise DeviceError(f"torch {torch.__version__} has no {backend}")


class PairStore(Store):
    """What a process group of two needs of a store: what one end sets, the other end gets, over their channel.

    A new connection is a new store, so that nothing of an earlier pairing is ever met. torch's own TCPStore is not
    used: a client of it that waits for a stopped server (SIGSTOP) never returns, whatever its time limit, since giving
    up is a message that the server has to confirm.
    """

    def __init__(self, channel: PairChannel, is_sound: Callable[[bytes], bool]) -> None:
        """`is_sound`: whether the group can take this from its peer."""
        super().__init__()
        self._channel = channel
        self._is_sound = is_sound
        self._own: dict[str, bytes] = {}

    def set(self, key: str, value: str | bytes) -> None:
        """To the peer."""
        data = value.encode() if isinstance(value, str) else bytes(value)
        self._own[key] = data
        self._channel.send(StoreEntry(key, data))

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        """Until the peer has set them, for the channel's time limit. Raises KVTransferFailed."""
        while not self.check(keys):
            self._channel.receive(StoreEntry)

    def get(self, key: str) -> bytes:
        """As `wait`. Gloo asks for what it has set itself too; that is never what a peer sets under the same key."""
        self.wait([key])
        if key in self._own:
            return self._own[key]
        data = self._channel.entries[key]
        if not self._is_sound(data):
            raise KVTransferFailed(
                f"the peer at {self._channel.peer_address} set {len(data)} bytes that are no address of its own"
            )
        return data

    def check(self, keys: list[str]) -> bool:
        """Whether they are there; the only one that other threads call."""
        return all(key in self._own or key in self._channel.entries for key in keys)


class PairGroup:
    """One end: rank 0 is the owner, rank 1 the puller. For one thread at a time."""

    def __init__(self, backend: Backend, channel: PairChannel, rank: int, device: torch.device) -> None:
        """With the channel's time limit; `device`: of all tensors.

        Returns when the other end was built too. Raises KVTransferFailed.
        """
        self._peer = 1 - rank
        self._limit = timedelta(seconds=channel.timeout_s)
        # NCCL's work and the wait for it go on the calling thread's stream, which must not be the engine's.
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        try:
            self._group = (_gloo if backend == "gloo" else _nccl)(channel, rank, self._limit)
        except RuntimeError as error:
            raise KVTransferFailed(f"no {backend} group with the peer: {_first_line(error)}") from error
        # NCCL connects with the first message. It goes here, where both ends are known to wait for it.
        greeting = torch.zeros(1, dtype=torch.uint8, device=device)
        try:
            (self.receive if rank else self.send)([greeting])
        except KVTransferFailed:
            self.abort()
            raise

    def send(self, tensors: Sequence[torch.Tensor]) -> None:
        """Contiguous tensors, all under way at once; returns when they may change again. Raises KVTransferFailed."""
        if failure := self._failure(self._group.send, tensors):
            raise KVTransferFailed(f"sending to the peer: {failure}")

    def receive(self, tensors: Sequence[torch.Tensor]) -> None:
        """As many tensors of the same sizes as the peer sends. Raises KVTransferFailed."""
        if failure := self._failure(self._group.recv, tensors):
            raise KVTransferFailed(f"receiving from the peer: {failure}")

    def abort(self) -> None:
        """End it, whatever the peer does. Its sockets and threads are gone afterwards."""
        self._group.abort()  # NCCL's; Gloo's does nothing, and its end is the end of the object
        self._group = None

    def _failure(self, start: Callable[..., Any], tensors: Sequence[torch.Tensor]) -> str:
        """Start and wait; why it failed. Text, as an exception would keep the group's sockets open with its frames."""
        try:
            with self._on_stream():
                for work in [start([tensor], self._peer, 0) for tensor in tensors]:
                    work.wait(self._limit)  # with a limit, NCCL's too waits for the bytes and not only for the stream
        except RuntimeError as error:
            return _first_line(error)
        return ""

    def _on_stream(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)


def _gloo(channel: PairChannel, rank: int, limit: timedelta) -> Any:
    gloo: Any = dist.ProcessGroupGloo  # its type stub lacks what begins with an underscore
    options = gloo._Options()
    options._timeout = limit
    options._threads = 1  # for collectives, of which there are none
    options._devices = [gloo.create_device(hostname=channel.local_address)]
    store = PairStore(channel, lambda data: _is_gloo_address(data, channel.peer_address))
    return gloo(store, rank, 2, options)


def _is_gloo_address(data: bytes, peer_address: str) -> bool:
    """Gloo follows what its peer set without a look at it: two lengths, each before what it measures (host name;
    socket address and a number), then a number per rank. It connects to that address, which may only be the peer's."""
    host_bytes = int.from_bytes(data[:8], "little")
    address_bytes = int.from_bytes(data[8 + host_bytes : 16 + host_bytes], "little")
    if address_bytes != _GLOO_ADDRESS_BYTES or len(data) != 8 + host_bytes + 8 + address_bytes + 2 * 8:
        return False
    family, first = (socket.AF_INET6, 8) if ":" in peer_address else (socket.AF_INET, 4)
    wanted = socket.inet_pton(family, peer_address)
    address = data[16 + host_bytes :]
    return address[:2] == family.to_bytes(2, sys.byteorder) and address[first : first + len(wanted)] == wanted


def _nccl(channel: PairChannel, rank: int, limit: timedelta) -> Any:
    # A time-out is ours to handle: by default torch's watchdog takes the whole process down.
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    os.environ.setdefault("TORCH_NCCL_ENABLE_MONITORING", "0")
    # Else connecting waits without end for a peer that has stopped.
    os.environ.setdefault("TORCH_NCCL_NONBLOCKING_TIMEOUT", str(max(1, round(limit.total_seconds()))))
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = limit
    options.config.blocking = 0
    options.global_ranks_in_group = [0, 1]
    options.group_name = GroupName("kv_transfer")
    store = PairStore(channel, lambda data: True)  # torch looks at the size of NCCL's id itself
    return dist.ProcessGroupNCCL(store, rank, 2, options)


def _first_line(error: RuntimeError) -> str:
    return str(error).partition("\n")[0][:300]
