"""CUDA's driver on a machine without one, with the true types of cuda-bindings: a renamed attribute fails here first.

One object is one process. Device memory is a file that others can map, as an IPC handle does. What the true driver does
not forgive is not forgiven here: a call in a thread without a context, a process that opens its own handle, and copies
that are only done when the stream is waited for.
"""

import ctypes
import itertools
import mmap
import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from cuda.bindings import driver as true

_SUCCESS = true.CUresult.CUDA_SUCCESS
_FREED = 0xDD
_names = itertools.count()


class FakeCuda:
    """The functions of `cuda.bindings.driver` that CudaDevice calls; GPUs are numbers of `gpus`, in this order."""

    CUresult = true.CUresult
    CUstream_flags = true.CUstream_flags
    CUipcMemHandle = true.CUipcMemHandle
    CUipcMem_flags = true.CUipcMem_flags

    def __init__(self, directory: Path, gpus: tuple[int, ...] = (0,), peers: frozenset[int] = frozenset()) -> None:
        self.directory, self.gpus, self.peers = directory, gpus, peers
        self.errors: dict[str, true.CUresult] = {}  # function -> what it fails with
        self.pending: list[tuple[int, int, int]] = []
        self.calls: Counter[str] = Counter()
        self.opened: dict[int, tuple[str, mmap.mmap]] = {}
        self._allocated: dict[int, tuple[str, mmap.mmap]] = {}
        self._thread = threading.local()

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if not name.startswith("cu"):
            return value
        getattr(true, name)  # the bindings must have it too

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls[name] += 1
            if name in self.errors:
                return self.errors[name], *[None] * 2
            needs_context = name.startswith(("cuMem", "cuIpc", "cuStream"))
            if needs_context and getattr(self._thread, "context", None) is None:
                return (true.CUresult.CUDA_ERROR_INVALID_CONTEXT, None)
            answer: tuple[Any, ...] = value(*arguments)
            return answer

        return call

    def cuInit(self, flags: int) -> tuple[Any, ...]:
        return (_SUCCESS,)

    def cuDeviceGetCount(self) -> tuple[Any, ...]:
        return _SUCCESS, len(self.gpus)

    def cuDeviceGet(self, ordinal: int) -> tuple[Any, ...]:
        if ordinal >= len(self.gpus):
            return true.CUresult.CUDA_ERROR_INVALID_DEVICE, None
        return _SUCCESS, true.CUdevice(ordinal)

    def cuDeviceGetUuid(self, device: Any) -> tuple[Any, ...]:
        uuid = true.CUuuid()
        ctypes.memmove(uuid.getPtr(), bytes([self.gpus[int(device)]] * 16), 16)
        return _SUCCESS, uuid

    def cuDeviceCanAccessPeer(self, device: Any, peer: Any) -> tuple[Any, ...]:
        return _SUCCESS, int(self.gpus[int(peer)] in self.peers)

    def cuDevicePrimaryCtxRetain(self, device: Any) -> tuple[Any, ...]:
        return _SUCCESS, true.CUcontext(1)

    def cuCtxSetCurrent(self, context: Any) -> tuple[Any, ...]:
        self._thread.context = context
        return (_SUCCESS,)

    def cuStreamCreate(self, flags: Any) -> tuple[Any, ...]:
        assert flags == true.CUstream_flags.CU_STREAM_NON_BLOCKING
        return _SUCCESS, true.CUstream(2)

    def cuMemAlloc(self, num_bytes: int) -> tuple[Any, ...]:
        name = f"device-memory-{next(_names)}"
        with (self.directory / name).open("wb") as file:
            file.truncate(num_bytes)
        pointer, mapping = self._map(name)
        ctypes.memset(pointer, 0x55, num_bytes)  # not zero, as on a GPU
        self._allocated[pointer] = name, mapping
        return _SUCCESS, true.CUdeviceptr(pointer)

    def cuMemsetD8(self, pointer: Any, value: int, num_bytes: int) -> tuple[Any, ...]:
        ctypes.memset(int(pointer), value, num_bytes)
        return (_SUCCESS,)

    def cuMemFree(self, pointer: int) -> tuple[Any, ...]:
        name, mapping = self._allocated.pop(pointer)
        ctypes.memset(pointer, _FREED, len(mapping))
        (self.directory / name).unlink()
        return (_SUCCESS,)

    def cuMemGetAddressRange(self, pointer: int) -> tuple[Any, ...]:
        _, mapping = (self._allocated | self.opened)[pointer]
        return _SUCCESS, true.CUdeviceptr(pointer), len(mapping)

    def cuIpcGetMemHandle(self, pointer: int) -> tuple[Any, ...]:
        handle = true.CUipcMemHandle()
        ctypes.memmove(handle.getPtr(), self._allocated[pointer][0].encode().ljust(64, b"\0"), 64)
        return _SUCCESS, handle

    def cuIpcOpenMemHandle(self, handle: Any, flags: Any) -> tuple[Any, ...]:
        assert flags == true.CUipcMem_flags.CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS
        name = ctypes.string_at(handle.getPtr(), 64).rstrip(b"\0").decode(errors="replace")
        if name in {mine for mine, _ in self._allocated.values()}:
            return true.CUresult.CUDA_ERROR_INVALID_CONTEXT, None
        if not (self.directory / name).is_file():
            return true.CUresult.CUDA_ERROR_INVALID_HANDLE, None
        pointer, mapping = self._map(name)
        self.opened[pointer] = name, mapping
        return _SUCCESS, true.CUdeviceptr(pointer)

    def cuIpcCloseMemHandle(self, pointer: int) -> tuple[Any, ...]:
        del self.opened[pointer]
        return (_SUCCESS,)

    def cuMemcpyAsync(self, target: int, source: int, num_bytes: int, stream: Any) -> tuple[Any, ...]:
        self.pending.append((target, source, num_bytes))
        return (_SUCCESS,)

    def cuStreamSynchronize(self, stream: Any) -> tuple[Any, ...]:
        while self.pending:
            ctypes.memmove(*self.pending.pop(0))
        return (_SUCCESS,)

    @contextmanager
    def launching(self) -> Iterator[torch.device]:
        """`CudaDevice.launching`: what is launched is interpreted at once, and counted as pending all the same."""
        assert self._thread.context is not None
        self.calls["launch"] += 1
        if "launch" in self.errors:
            raise RuntimeError(f"Triton Error [CUDA]: {self.errors['launch'].name}")
        yield torch.device("cpu")
        self.pending.append((0, 0, 0))

    def _map(self, name: str) -> tuple[int, mmap.mmap]:
        descriptor = os.open(self.directory / name, os.O_RDWR)
        mapping = mmap.mmap(descriptor, 0)
        os.close(descriptor)
        return ctypes.addressof(ctypes.c_char.from_buffer(mapping)), mapping
