"""One segment of POSIX shared memory: its name, its lock and its life.

A segment is a file in /dev/shm that its owner holds an flock on for as long as it lives. The kernel drops the lock
with the last descriptor, SIGKILL included, so "locked" means "the owner lives" without any pid, in every container
that shares the directory. (A process that forks without exec shares the lock; the nursery forks and has none.)
multiprocessing.shared_memory is not used: its resource tracker unlinks segments that other processes still own.

This file knows bytes and names. It knows nothing of blocks, offers, handles or torch.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import re
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from errors import DeviceError, KVTransferFailed

MADV_POPULATE_WRITE = 23
SHM_DIRECTORY = Path("/dev/shm")
PREFIX = "pdq-"
_WORKER_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_NAME = re.compile(r"pdq-[A-Za-z0-9._-]{1,128}-[0-9a-f]{16}")
# A name from outside may be a symlink or a FIFO by now; neither may lead us away or block us.
_OPEN_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(eq=False, slots=True)
class Segment:
    """A mapped segment. The owner's mapping is writable and locked, everybody else's is read-only.

    Nothing is ever unmapped by hand: the mapping goes with the last view or tensor over it, so no order of closing
    can leave a tensor over unmapped memory.
    """

    name: str
    path: Path
    descriptor: int  # -1 once closed
    mapping: mmap.mmap

    def size_bytes(self) -> int:
        """What the kernel says the file's size is now; less than the mapping means that reading would be SIGBUS."""
        return os.fstat(self.descriptor).st_size

    def is_owner_alive(self) -> bool:
        """Whether anybody holds the owner's lock."""
        try:
            # Shared, so that two askers do not take each other for the owner; let go at once.
            fcntl.flock(self.descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self.descriptor, fcntl.LOCK_UN)
        return False

    def reserve(self, start: int, stop: int) -> None:
        """Of the owner: have these bytes' memory, mapped, so that no later write waits for its page or finds none.

        Raises DeviceError when there is no room.
        """
        if self.descriptor < 0:
            return  # closed while a thread was about to
        try:
            os.posix_fallocate(self.descriptor, start, stop - start)
        except OSError as error:
            raise _no_room(self.path.parent, stop - start, error) from error
        # Else the first write to every page is a fault, 3 to 4 ms more for a prompt of 128 tokens. Through ctypes, as
        # `mmap.madvise` would keep the GIL for its 10 ms. Kernels before 5.14 know it not: there it is a fault.
        page = start // mmap.PAGESIZE * mmap.PAGESIZE
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.mapping, page))
        libc = ctypes.CDLL(None)
        libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(stop - page), ctypes.c_int(MADV_POPULATE_WRITE))

    def room_bytes(self) -> int:
        """What could be reserved besides, at this moment."""
        room = os.fstatvfs(self.descriptor)
        return room.f_bavail * room.f_frsize

    def close(self) -> None:
        """Give up descriptor and lock. Harmless when repeated."""
        if self.descriptor >= 0:
            descriptor, self.descriptor = self.descriptor, -1
            # Explicitly: the mapping holds a duplicate of the descriptor, and with it the lock.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def remove(self) -> None:
        """The owner's end of it: unlink the name, then unlock. Harmless when repeated."""
        if self.descriptor >= 0:
            self.path.unlink(missing_ok=True)
            self.close()


def create_segment(
    worker_id: str, num_bytes: int, directory: Path = SHM_DIRECTORY, first_bytes: int | None = None
) -> Segment:
    """A new segment `pdq-<worker_id>-<random>` of zeros, mode 0600, locked, with every byte reserved, or the first
    ones; the others are to be reserved before they are used.

    Raises DeviceError when `directory` cannot hold them: found here, it would be SIGBUS at some later write.
    """
    if not _WORKER_ID.fullmatch(worker_id):
        raise ValueError(f"worker id {worker_id!r}: letters, digits, '.', '_' and '-' only, at most 128")
    while True:
        name = f"{PREFIX}{worker_id}-{secrets.token_hex(8)}"
        path = directory / name
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DeviceError(f"cannot create shared memory in {directory}: {error.strerror}") from error
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Between open and flock a sweeper may have taken the lock and unlinked the name: then begin again.
        if os.fstat(descriptor).st_nlink > 0:
            break
        os.close(descriptor)
    try:
        os.ftruncate(descriptor, num_bytes)
        mapping = mmap.mmap(descriptor, num_bytes, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        segment = Segment(name, path, descriptor, mapping)
        segment.reserve(0, num_bytes if first_bytes is None else first_bytes)
    except OSError as error:
        path.unlink(missing_ok=True)
        os.close(descriptor)
        raise _no_room(directory, num_bytes, error) from error
    except DeviceError:
        segment.remove()
        raise
    return segment


def _no_room(directory: Path, num_bytes: int, error: OSError) -> DeviceError:
    if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.ENOMEM):
        return DeviceError(f"cannot reserve {num_bytes:,} bytes in {directory}: {error.strerror}")
    room = os.statvfs(directory)
    free, total = room.f_bavail * room.f_frsize, room.f_blocks * room.f_frsize
    fitting = max(1, free >> 20) << 20
    size = f"{-(-(total - free + num_bytes) >> 30)}g"
    return DeviceError(
        f"the KV pool needs {num_bytes:,} bytes of shared memory, {directory} has {free:,} of {total:,} free "
        f"({error.strerror}): lower PDQ_KV__POOL_BYTES to {fitting}, or give the container more (SHM_SIZE={size} for "
        f"compose, `--shm-size={size}` of docker run)"
    )


def open_segment(name: str, directory: Path = SHM_DIRECTORY, is_writable: bool = False) -> Segment:
    """Somebody's segment, mapped read-only unless asked for. `name` may come from anywhere. Raises KVTransferFailed."""
    if not _NAME.fullmatch(name):
        raise KVTransferFailed(f"{name[:160]!r} is no name of a pool")
    path = directory / name
    try:
        descriptor = os.open(path, _OPEN_FLAGS | (os.O_RDWR if is_writable else os.O_RDONLY))
    except FileNotFoundError:
        raise KVTransferFailed(f"pool {name} is gone") from None
    except OSError as error:
        raise KVTransferFailed(f"pool {name} cannot be opened: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
            raise KVTransferFailed(f"pool {name} is empty or no segment")
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if is_writable else 0)
        mapping = mmap.mmap(descriptor, status.st_size, mmap.MAP_SHARED, protection)
    except (OSError, ValueError) as error:  # ValueError: cut short since fstat
        os.close(descriptor)
        raise KVTransferFailed(f"pool {name} cannot be mapped: {error}") from error
    except KVTransferFailed:
        os.close(descriptor)
        raise
    return Segment(name, path, descriptor, mapping)


def sweep_segments(directory: Path = SHM_DIRECTORY) -> list[str]:
    """Unlink the segments of ours whose owner is gone; their names.

    The sweeper takes the owner's lock first, so a living owner's segment is never touched, and one that is just being
    created is either locked already or notices (see `create_segment`). Mappings of others stay valid.
    """
    swept = []
    for name in sorted(os.listdir(directory)):
        if not _NAME.fullmatch(name):
            continue
        path = directory / name
        try:
            descriptor = os.open(path, _OPEN_FLAGS)
        except OSError:  # swept by another, or another user's
            continue
        try:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(descriptor).st_nlink > 0:
                    path.unlink()
                    swept.append(name)
        except (BlockingIOError, FileNotFoundError, PermissionError):
            pass  # its owner lives, another sweeper was quicker, or it is not ours to remove
        finally:
            os.close(descriptor)
    return swept
