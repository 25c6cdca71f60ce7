import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from errors import DeviceError, KVTransferFailed
from kv_transfer.segment import create_segment, open_segment, sweep_segments


def test_a_new_segment_is_private_zeroed_reserved_and_locked(shm_directory: Path) -> None:
    segment = create_segment("worker-1", 3 * 4096 + 5, shm_directory)
    status = os.stat(shm_directory / segment.name)
    assert segment.name.startswith("pdq-worker-1-")
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_size == 3 * 4096 + 5 == len(segment.mapping)
    assert status.st_blocks * 512 >= status.st_size, "not reserved: a later write could be SIGBUS"
    assert bytes(segment.mapping) == bytes(status.st_size)
    assert sweep_segments(shm_directory) == []
    segment.remove()
    segment.remove()
    assert list(shm_directory.iterdir()) == []


@pytest.mark.parametrize("worker_id", ["", "a/b", "../x", "a b", "x" * 129, "ä"])
def test_a_worker_id_that_is_no_file_name_is_refused(worker_id: str, shm_directory: Path) -> None:
    with pytest.raises(ValueError, match="worker id"):
        create_segment(worker_id, 4096, shm_directory)


def test_too_small_shm_is_a_device_error_that_says_what_to_do(
    shm_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    room = os.statvfs(shm_directory)
    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(
        os, "statvfs", lambda path: os.statvfs_result((4096, 4096, 16384, 1000, 1000, 0, 0, 0, 0, room.f_namemax))
    )
    with pytest.raises(DeviceError, match="1,073,741,824 bytes") as failure:
        create_segment("worker-1", 1 << 30, shm_directory)
    for part in ("4,096,000", "67,108,864", "PDQ_KV__POOL_BYTES to 3145728,", "SHM_SIZE=2g", str(shm_directory)):
        assert part in str(failure.value)
    assert list(shm_directory.iterdir()) == [], "the name of the failed segment stayed"


def test_the_kernel_itself_refuses_what_does_not_fit(shm_directory: Path) -> None:
    with pytest.raises(DeviceError, match="PDQ_KV__POOL_BYTES"):
        create_segment("worker-1", 1 << 60, shm_directory)
    assert list(shm_directory.iterdir()) == []


def test_another_failure_to_reserve_is_a_device_error(shm_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    with pytest.raises(DeviceError, match="not supported"):
        create_segment("worker-1", 4096, shm_directory)
    assert list(shm_directory.iterdir()) == []
    with pytest.raises(DeviceError, match="cannot create shared memory"):
        create_segment("worker-1", 4096, shm_directory / "missing")


def test_a_sweep_takes_only_segments_whose_owner_is_gone(shm_directory: Path) -> None:
    alive = create_segment("alive", 4096, shm_directory)
    dead = create_segment("dead", 4096, shm_directory)
    dead.close()  # as the kernel does it for a killed process: the lock goes, the name stays
    random_part = "0" * 16
    others = [
        shm_directory / "sem.other",
        shm_directory / "pdq-no-random-part",
        shm_directory / f"pdq-link-{random_part}",
        shm_directory / f"pdq-fifo-{random_part}",
        shm_directory / f"pdq-directory-{random_part}",
    ]
    others[0].touch()
    others[1].touch()
    others[2].symlink_to(others[0])
    os.mkfifo(others[3])
    others[4].mkdir()
    assert sweep_segments(shm_directory) == [dead.name]
    assert sweep_segments(shm_directory) == []
    assert sorted(shm_directory.iterdir()) == sorted([*others, alive.path])
    alive.remove()
    others[4].rmdir()
    for path in others[:4]:
        path.unlink()


def test_a_sweep_between_creating_and_locking_is_noticed(shm_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_flock = fcntl.flock
    swept: list[list[str]] = []

    def sweep_first(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", real_flock)
        swept.append(sweep_segments(shm_directory))  # before the creator has its lock
        real_flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", sweep_first)
    segment = create_segment("worker-1", 4096, shm_directory)
    assert len(swept) == 1 and len(swept[0]) == 1
    assert segment.name not in swept[0]
    assert [path.name for path in shm_directory.iterdir()] == [segment.name]
    assert sweep_segments(shm_directory) == []
    segment.remove()


def test_asking_for_the_owner_does_not_take_its_place(shm_directory: Path) -> None:
    owner = create_segment("worker-1", 4096, shm_directory)
    reader = open_segment(owner.name, shm_directory)
    other = open_segment(owner.name, shm_directory)
    assert reader.is_owner_alive() and other.is_owner_alive()
    owner.close()
    assert not reader.is_owner_alive() and not other.is_owner_alive()
    assert not reader.is_owner_alive()
    assert sweep_segments(shm_directory) == [owner.name], "whoever asked must not hold the lock now"
    reader.close()
    reader.close()
    other.close()


def test_a_reader_sees_what_the_owner_writes_and_cannot_write(shm_directory: Path) -> None:
    owner = create_segment("worker-1", 4096, shm_directory)
    reader = open_segment(owner.name, shm_directory)
    owner.mapping[7] = 42
    assert reader.mapping[7] == 42
    with pytest.raises(TypeError):
        reader.mapping[7] = 1
    reader.close()
    owner.remove()
    assert reader.mapping[7] == 42, "the mapping outlives name, owner and descriptor"


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "/etc/passwd",
        "../../etc/passwd",
        "pdq-x/../../../etc/passwd-0123456789abcdef",
        "pdq-x-0123456789abcdef\0",
        "pdq-x-0123456789abcdef\n",
        "pdq-\ud800-0123456789abcdef",
        "pdq-" + "x" * 5000 + "-0123456789abcdef",
    ],
)
def test_a_name_that_is_none_is_refused(name: str, shm_directory: Path) -> None:
    with pytest.raises(KVTransferFailed, match="no name of a pool"):
        open_segment(name, shm_directory)


def test_what_is_no_segment_is_not_opened(shm_directory: Path) -> None:
    makers: dict[str, Any] = {
        "link": lambda path: path.symlink_to("/etc/passwd"),
        "fifo": os.mkfifo,
        "empty": Path.touch,
        "directory": Path.mkdir,
    }
    for kind, make in makers.items():
        path = shm_directory / f"pdq-{kind}-0123456789abcdef"
        make(path)
        with pytest.raises(KVTransferFailed):
            open_segment(path.name, shm_directory)
        path.rmdir() if kind == "directory" else path.unlink()
    with pytest.raises(KVTransferFailed, match="gone"):
        open_segment("pdq-x-0123456789abcdef", shm_directory)


def test_of_a_segment_that_grows_only_the_reserved_part_has_memory(shm_directory: Path) -> None:
    size, first = 1 << 20, 3 * 4096 + 5
    segment = create_segment("worker-1", size, shm_directory, first_bytes=first)
    path = shm_directory / segment.name

    def reserved() -> int:
        return os.stat(path).st_blocks * 512

    assert len(segment.mapping) == os.stat(path).st_size == size
    assert first <= reserved() < size // 2
    segment.mapping[first - 1] = 7
    segment.reserve(first, size // 2)
    assert size // 2 <= reserved() < size
    assert segment.mapping[first - 1] == 7 and bytes(segment.mapping[first : size // 2]) == bytes(size // 2 - first)
    assert open_segment(segment.name, shm_directory).mapping[first - 1] == 7
    assert segment.room_bytes() > 0
    segment.remove()
    segment.reserve(size // 2, size)  # closed meanwhile: nothing to do, and nobody to tell


def test_a_segment_that_cannot_grow_says_so(shm_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segment = create_segment("worker-1", 1 << 20, shm_directory, first_bytes=4096)

    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DeviceError, match="PDQ_KV__POOL_BYTES"):
        segment.reserve(4096, 8192)
    assert (shm_directory / segment.name).exists()
    segment.remove()
