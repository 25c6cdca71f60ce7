"""The ledger of cores: how workers of a host that compute on the same cores share them. See `kernels/cpu/cores.cpp`.

A file in shared memory with a slot per worker; a slot is a worker's as long as it holds the lock on its bytes, which
the kernel drops when the worker dies. Knows no queue and no worker's role.
"""

import ctypes
import fcntl
import mmap
import os
from ctypes import c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path

SHM_DIRECTORY = Path("/dev/shm")
NUM_SLOTS = 32
SLOT_BYTES = 64


@dataclass(frozen=True, slots=True)
class CoreLedger:
    """A slot of a mapped ledger."""

    descriptor: int  # holds the lock
    mapping: mmap.mmap
    slot: int


def open_ledger(directory: Path = SHM_DIRECTORY) -> CoreLedger | None:
    """A free slot of the ledger that all processes of this user on these cores have in common.

    None where there is no shared memory, and where all slots are taken: such a worker takes every core, always.
    """
    name = f"pdq-cores.{os.getuid()}.{_cores_key()}"
    try:
        descriptor = os.open(directory / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        os.ftruncate(descriptor, NUM_SLOTS * SLOT_BYTES)
        for slot in range(NUM_SLOTS):
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, SLOT_BYTES, slot * SLOT_BYTES)
            except BlockingIOError:
                continue
            return CoreLedger(descriptor, mmap.mmap(descriptor, NUM_SLOTS * SLOT_BYTES), slot)
    except OSError:
        pass
    os.close(descriptor)
    return None


def use_cores(library: ctypes.CDLL, num_threads: int, ledger: CoreLedger | None) -> None:
    """Compute on up to `num_threads` threads from now on, on fewer while others of the ledger compute too."""
    library.pdq_set_threads.argtypes = [c_int64]
    library.pdq_set_threads(num_threads)
    if ledger is not None:
        library.pdq_share_cores.argtypes = [c_void_p, c_int64, c_int64]
        address = ctypes.addressof(ctypes.c_char.from_buffer(ledger.mapping))
        library.pdq_share_cores(address, NUM_SLOTS, ledger.slot)
        _in_use.append(ledger)  # the library reads it until the process ends


def take_cores(library: ctypes.CDLL, num_threads: int) -> None:
    """Compute on exactly so many threads from now on, whoever else computes: what a measurement wants."""
    library.pdq_share_cores.argtypes = [c_void_p, c_int64, c_int64]
    library.pdq_share_cores(None, 0, 0)
    use_cores(library, num_threads, None)


def are_wanted(library: ctypes.CDLL) -> bool:
    """Whether another worker computes on our cores at the moment."""
    library.pdq_threads_now.restype = library.pdq_num_threads.restype = c_int64
    return bool(library.pdq_threads_now() < library.pdq_num_threads())


def leave(library: ctypes.CDLL) -> None:
    """The cores are the others' until we compute again."""
    library.pdq_leave_cores()


def show_prompts(library: ctypes.CDLL, num_prompts: int) -> None:
    """So many prompts get their first tokens by our next steps; others see it while we compute."""
    library.pdq_show_prompts.argtypes = [c_int64]
    library.pdq_show_prompts(num_prompts)


def prompts_of_others(library: ctypes.CDLL) -> int:
    """How many prompts those who compute on our cores at the moment are about to finish."""
    library.pdq_prompts_of_others.restype = c_int64
    return int(library.pdq_prompts_of_others())


_in_use: list[CoreLedger] = []


def _cores_key() -> str:
    """The cores that this process may use, as a hexadecimal mask."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return f"{sum(1 << core for core in cores):x}"
