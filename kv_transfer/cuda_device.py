"""One GPU through CUDA's driver interface: each method is a few calls and their check, so that little is left to test.

Threads that pull have no current context, so every method makes the device's primary context (torch's) current first.
The bindings are handed in: tests hand in a fake that has their very types. Knows no pool and no handle of ours.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch

from kernels.gpu.block_copy import reshard_blocks
from kv_transfer.copy_runs import BlockCopies

HANDLE_BYTES = 64


class CudaFailure(Exception):
    """A call of the driver failed; the text has CUDA's name for why."""


class CudaDevice:
    """The GPU that is `ordinal` in this process."""

    def __init__(self, ordinal: int = 0, bindings: Any = None) -> None:
        """Raises CudaFailure where there is no driver or no such GPU."""
        self._cuda = bindings or import_module("cuda.bindings.driver")
        self.ordinal = ordinal
        self._call("cuInit", 0)
        self._device = self._call("cuDeviceGet", ordinal)
        self._context = self._call("cuDevicePrimaryCtxRetain", self._device)
        self._make_current()
        self._stream = self._call("cuStreamCreate", self._cuda.CUstream_flags.CU_STREAM_NON_BLOCKING)
        self.uuid = self._uuid_of(self._device)

    def readable_uuids(self) -> frozenset[str]:
        """The other GPUs of this process whose memory this one can read directly."""
        others = [self._call("cuDeviceGet", index) for index in range(self._call("cuDeviceGetCount"))]
        return frozenset(
            self._uuid_of(other)
            for other in others
            if int(other) != int(self._device) and self._call("cuDeviceCanAccessPeer", self._device, other)
        )

    def alloc(self, num_bytes: int) -> int:
        """An allocation of its own, zeroed; its address. An IPC handle exports the whole of an allocation."""
        self._make_current()
        pointer = self._call("cuMemAlloc", num_bytes)
        self._call("cuMemsetD8", pointer, 0, num_bytes)
        return int(pointer)

    def free(self, pointer: int) -> None:
        """Give it back."""
        self._make_current()
        self._call("cuMemFree", pointer)

    def export(self, pointer: int) -> bytes:
        """The handle by which another process opens the allocation, 64 bytes."""
        self._make_current()
        handle = self._call("cuIpcGetMemHandle", pointer)
        # `handle.reserved` is gone in cuda-bindings 13.5; its address is in every version.
        return ctypes.string_at(handle.getPtr(), HANDLE_BYTES)

    def open(self, exported: bytes) -> int:
        """Map another process's allocation; its address here. Peer access is enabled by this where it is needed."""
        self._make_current()
        handle = self._cuda.CUipcMemHandle()
        ctypes.memmove(handle.getPtr(), exported, HANDLE_BYTES)
        lazily = self._cuda.CUipcMem_flags.CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS
        return int(self._call("cuIpcOpenMemHandle", handle, lazily))

    def close(self, pointer: int) -> None:
        """Unmap what `open` has mapped."""
        self._make_current()
        self._call("cuIpcCloseMemHandle", pointer)

    def size_of(self, pointer: int) -> int:
        """Bytes of the allocation that begins at `pointer`."""
        self._make_current()
        _, size = self._call("cuMemGetAddressRange", pointer)
        return int(size)

    def copy(self, source: int, target: int, copies: BlockCopies) -> None:
        """Between two addresses, on the copy stream; returns when the blocks are there.

        Whole blocks are long enough for the copy engines, which take no multiprocessor from a decode step. Of a cut
        block every row is a short piece: one launch moves all of them, where a call per block would cost 4 us of
        Python and 2 to 7 of the driver: with 2048 blocks more than their bytes take over NVLink.
        """
        self._make_current()
        try:
            if copies.cut.is_whole:
                for run in copies.runs():
                    places = target + run.target_byte, source + run.source_byte
                    self._call("cuMemcpyAsync", *places, run.num_bytes, self._stream)
            else:
                self._reshard(source, target, copies)
        finally:  # where one fails, those before it still write into blocks that somebody else is given next
            self._call("cuStreamSynchronize", self._stream)

    @contextmanager
    def launching(self) -> Iterator[torch.device]:
        """Inside, torch and Triton work on this GPU, which is given, and on the copy stream."""
        device = torch.device("cuda", self.ordinal)
        stream = torch.cuda.ExternalStream(int(self._stream), device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            yield device

    def tensor(self, pointer: int, num_bytes: int) -> torch.Tensor:
        """The memory as uint8 [num_bytes]; it must outlive the tensor."""
        return torch.as_tensor(_Memory(pointer, num_bytes), device=f"cuda:{self.ordinal}")

    def _reshard(self, source: int, target: int, copies: BlockCopies) -> None:
        cut = copies.cut
        try:
            with self.launching() as device:
                reshard_blocks(
                    source,
                    target,
                    torch.tensor([copies.source_ids, copies.target_ids], dtype=torch.int32, device=device),
                    num_rows=cut.num_rows,
                    row_bytes=cut.run_bytes,
                    source_block_bytes=cut.source_block_bytes,
                    source_byte=cut.source_byte,
                    target_block_bytes=cut.target_block_bytes,
                    target_byte=cut.target_byte,
                )
        except RuntimeError as error:  # torch's and Triton's for whatever CUDA says
            raise CudaFailure(f"reshard_blocks: {error}") from error

    def _make_current(self) -> None:
        self._call("cuCtxSetCurrent", self._context)

    def _uuid_of(self, device: Any) -> str:
        digits = bytes(self._call("cuDeviceGetUuid", device).bytes).hex()
        cuts = (0, 8, 12, 16, 20, 32)
        return "GPU-" + "-".join(digits[begin:end] for begin, end in zip(cuts, cuts[1:], strict=False))

    def _call(self, name: str, *arguments: Any) -> Any:
        try:
            error, *values = getattr(self._cuda, name)(*arguments)
        except RuntimeError as missing:  # there is no libcuda.so
            raise CudaFailure(f"{name}: {missing}") from missing
        if error != self._cuda.CUresult.CUDA_SUCCESS:
            raise CudaFailure(f"{name}: {self._cuda.CUresult(error).name}")
        return values[0] if len(values) == 1 else values


class _Memory:
    """What `torch.as_tensor` takes for device memory: numba's CUDA array interface, version 3."""

    def __init__(self, pointer: int, num_bytes: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (num_bytes,),
            "typestr": "|u1",
            "data": (pointer, False),
            "version": 3,
        }
