"""NIXL's agent in a few thin calls: register memory, say how to reach it, read somebody's.

NIXL carries bytes between hosts over whatever UCX finds (InfiniBand, RoCE, TCP). Of its Python interface nothing is
used that pickles. Knows no pool and no handle.
"""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from errors import DeviceError, KVTransferFailed

_FIRST_POLL_S = 0.0001
_LONGEST_POLL_S = 0.002

Piece = tuple[int, int]  # address, bytes


class Unfinished(KVTransferFailed):
    """A read that did not end in time: its target may still be written, until `has_ended` says no more."""

    def __init__(self, reason: str, has_ended: Callable[[], bool]) -> None:
        super().__init__(reason)
        self.has_ended = has_ended


class NixlAgent:
    """One per process. Reads may run in several threads."""

    def __init__(self, name: str) -> None:
        """Raises DeviceError where NIXL or UCX cannot be had."""
        os.environ.setdefault("NIXL_LOG_LEVEL", "FATAL")  # it writes to stderr; what it says comes as an exception too
        try:
            from nixl import _api, _bindings
        except ImportError as error:
            raise DeviceError(f"NIXL is not installed (pip install 'pdq[nixl]'): {error}") from error
        # They have no base of their own.
        names = [name for name in dir(_bindings) if name.endswith("Error")]
        self._errors: tuple[type[Exception], ...] = tuple(getattr(_bindings, name) for name in names)
        # Its own progress thread never sleeps, which costs a core; ours is `progress`.
        config = _api.nixl_agent_config(
            enable_prog_thread=False, backends=["UCX"], sync_mode=_api.nixl_thread_sync_t.NIXL_THREAD_SYNC_STRICT
        )
        try:
            self._agent: Any = _api.nixl_agent(name, config)
        except self._errors as error:
            raise DeviceError(f"NIXL does not start: {error}") from error
        if "UCX" not in self._agent.backends:
            raise DeviceError("NIXL has no UCX plugin here")

    def register(self, memory: torch.Tensor) -> "Registered":
        """Let NIXL read from and write to the tensor's memory, which must be contiguous. Raises DeviceError."""
        kind = "VRAM" if memory.is_cuda else "DRAM"
        num_bytes = memory.numel() * memory.element_size()
        descriptors = [(memory.data_ptr(), num_bytes, memory.get_device() if memory.is_cuda else 0, "")]
        try:
            self._agent.register_memory(descriptors, kind)
        except self._errors as error:
            raise DeviceError(f"NIXL cannot register {num_bytes} bytes of {kind}: {error}") from error
        return Registered(memory.data_ptr(), num_bytes, kind, descriptors[0][2], memory)

    def deregister(self, memory: "Registered") -> None:
        """The opposite; nothing may be under way."""
        descriptors = self._agent.get_reg_descs([(memory.address, memory.num_bytes, memory.device_id, "")], memory.kind)
        self._agent.deregister_memory(descriptors)

    def metadata(self) -> bytes:
        """What another agent needs to read what is registered so far; some hundred bytes."""
        data: bytes = self._agent.get_agent_metadata()
        return data

    def progress(self) -> None:
        """Serve what others read from us, where their network card cannot do so alone (TCP)."""
        self._agent.get_new_notifs()

    def connect(self, metadata: bytes) -> str:
        """Make another agent known; its name here. Raises KVTransferFailed."""
        try:
            name: bytes = self._agent.add_remote_agent(metadata)
        except self._errors as error:
            raise KVTransferFailed(f"the owner's NIXL agent cannot be reached: {error}") from error
        return name.decode()

    def disconnect(self, peer: str) -> None:
        """Forget another agent; harmless when it is gone."""
        try:
            self._agent.remove_remote_agent(peer)
        except self._errors:
            pass  # it was never connected or is gone already, which is what was wanted

    def read(
        self,
        peer: str,
        remote: "RemoteMemory",
        sources: Sequence[Piece],
        target: "Registered",
        offset: int,
        time_s: float,
    ) -> None:
        """Read the pieces of remote memory one after another into `target` from byte `offset` on.

        Raises KVTransferFailed, and its subclass Unfinished when the owner neither delivers nor fails within `time_s`.
        """
        local, place = [], target.address + offset
        for _, num_bytes in sources:
            local.append((place, num_bytes, target.device_id))
            place += num_bytes
        assert place <= target.address + target.num_bytes, "more is read than the target holds"
        theirs = [(address, num_bytes, remote.device_id) for address, num_bytes in sources]
        deadline, poll_s = time.monotonic() + time_s, _FIRST_POLL_S
        try:
            handle = self._agent.initialize_xfer(
                "READ",
                self._agent.get_xfer_descs(local, target.kind),
                self._agent.get_xfer_descs(theirs, remote.kind),
                peer,
            )
            state = self._agent.transfer(handle)
            while state == "PROC" and time.monotonic() < deadline:
                time.sleep(poll_s)
                poll_s = min(2 * poll_s, _LONGEST_POLL_S)
                state = self._agent.check_xfer_state(handle)
        except self._errors as error:
            raise KVTransferFailed(f"NIXL: {error}") from error
        if state == "PROC":
            raise Unfinished(f"the owner did not deliver within {time_s:g} s", lambda: self._has_ended(handle))
        handle.release()
        if state != "DONE":
            raise KVTransferFailed(f"NIXL: the read ended as {state}")

    def _has_ended(self, handle: Any) -> bool:
        try:
            if self._agent.check_xfer_state(handle) == "PROC":
                return False
        except self._errors:
            pass  # ended without success
        handle.release()
        return True


class Registered:
    """Memory that an agent may reach; it keeps the tensor."""

    def __init__(self, address: int, num_bytes: int, kind: str, device_id: int, tensor: torch.Tensor) -> None:
        self.address, self.num_bytes, self.kind, self.device_id = address, num_bytes, kind, device_id
        self.tensor = tensor


class RemoteMemory:
    """Where somebody's memory lies, as its owner says."""

    def __init__(self, kind: str, device_id: int) -> None:
        self.kind, self.device_id = kind, device_id
