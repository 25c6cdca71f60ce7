"""A process group of two, Gloo's or NCCL's, built on a store of its own and thrown away when anything fails.

torch's groups are built directly: `init_process_group` and `new_group` need every rank of a world to take part, and
workers come and go. Nothing is waited for longer than the group's time limit, the building included. A group in which
anything failed is of no more use. Knows tensors; knows no pool and no protocol.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from messages import DeviceError, KVTransferFailed

Backend = Literal["gloo", "nccl"]


def backend_for(device: torch.device) -> Backend:
    """NCCL moves the memory of GPUs alone; Gloo stands in for it on a CPU."""
    return "nccl" if device.type == "cuda" else "gloo"


def check_backend(backend: Backend) -> None:
    """Raises DeviceError where this torch has not been built with it."""
    is_there = dist.is_gloo_available() if backend == "gloo" else dist.is_nccl_available()
    if not is_there:
        raise DeviceError(f"torch {torch.__version__} has no {backend}")


class PairGroup:
    """One end: rank 0 is the owner, rank 1 the puller. For one thread at a time."""

    def __init__(
        self, backend: Backend, store: Store, rank: int, timeout_s: float, address: str, device: torch.device
    ) -> None:
        """`address`: of ours, reachable by the peer (Gloo listens on it); `device`: of all tensors.

        Returns when the other end was built too. Raises KVTransferFailed.
        """
        self._peer = 1 - rank
        self._limit = timedelta(seconds=timeout_s)
        # NCCL's work and the wait for it go on the calling thread's stream, which must not be the engine's.
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        try:
            self._group = (_gloo if backend == "gloo" else _nccl)(store, rank, self._limit, address)
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


def _gloo(store: Store, rank: int, limit: timedelta, address: str) -> Any:
    gloo: Any = dist.ProcessGroupGloo  # its type stub lacks what begins with an underscore
    options = gloo._Options()
    options._timeout = limit
    options._threads = 1  # for collectives, of which there are none
    options._devices = [gloo.create_device(hostname=address)]
    return gloo(store, rank, 2, options)


def _nccl(store: Store, rank: int, limit: timedelta, address: str) -> Any:
    # A time-out is ours to handle: by default torch's watchdog takes the whole process down.
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    os.environ.setdefault("TORCH_NCCL_ENABLE_MONITORING", "0")
    # Else connecting waits without end for a peer that has stopped.
    os.environ.setdefault("TORCH_NCCL_NONBLOCKING_TIMEOUT", str(max(1, round(limit.total_seconds()))))
    options: Any = dist.ProcessGroupNCCL.Options()
    options._timeout = limit
    options.config.blocking = 0
    options.global_ranks_in_group = [0, 1]
    options.group_name = "kv_transfer"
    return dist.ProcessGroupNCCL(store, rank, 2, options)


def _first_line(error: RuntimeError) -> str:
    return str(error).partition("\n")[0][:300]
