"""What `pdq serve` makes of a small /dev/shm."""

import pytest

from cli import local_cluster
from cli.local_cluster import LocalCluster
from cli.shm_room import ShmRoom, shm_room
from errors import DeviceError
from messages.worker_status import Role
from settings.kv import KVSettings
from settings.loading import Settings
from settings.workers import DecodeSettings

GIB = 1 << 30
TWO_EACH = {Role.PREFILL: 2, Role.DECODE: 2}


def free(num_bytes: int) -> ShmRoom:
    return ShmRoom(num_bytes, 8 * GIB)


@pytest.mark.parametrize(
    ("num_pools", "lacking"), [(1, Role.PREFILL), (2, Role.DECODE), (3, Role.DECODE), (4, None), (5, None)]
)
def test_prefill_pools_come_first(num_pools: int, lacking: Role | None) -> None:
    room = free(num_pools * (GIB + (1 << 20)))
    assert room.lacks_for(Settings(kv=KVSettings(pool_bytes=GIB)), TWO_EACH) == lacking


@pytest.mark.parametrize("decode", [DecodeSettings(export_pool=False), DecodeSettings(tensor_parallel=2)])
def test_decode_pools_in_other_memory_need_no_room(decode: DecodeSettings) -> None:
    assert free(3 * GIB).lacks_for(Settings(kv=KVSettings(pool_bytes=GIB), decode=decode), TWO_EACH) is None


def test_nothing_is_said_of_pools_whose_size_is_given_in_blocks() -> None:
    assert free(0).lacks_for(Settings(kv=KVSettings(num_blocks=64)), TWO_EACH) is None


def test_what_the_kernel_says() -> None:
    room = shm_room()
    assert 0 < room.free_bytes <= room.total_bytes
    assert "GiB free" in str(room)


def test_serve_refuses_or_does_without(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(local_cluster, "are_pools_in_shm", lambda settings: True)
    cluster = LocalCluster(Settings(kv=KVSettings(pool_bytes=GIB)), TWO_EACH, is_redis_given=True)
    monkeypatch.setattr(local_cluster, "shm_room", lambda: free(GIB))
    with pytest.raises(DeviceError, match=r"1.0 of 8.0 GiB free; 2 prefill worker\(s\) take 1.0 GiB each: ") as failure:
        cluster.has_room_for_decode_pools()
    # 4 pools in 1 GiB; 7 of the 8 GiB are taken, and 4 more are wanted.
    assert "lower PDQ_KV__POOL_BYTES to 267386880, or give" in str(failure.value)
    assert "SHM_SIZE=12g" in str(failure.value)
    fitting = Settings(kv=KVSettings(pool_bytes=267386880))
    assert free(GIB).lacks_for(fitting, TWO_EACH) is None
    monkeypatch.setattr(local_cluster, "shm_room", lambda: free(3 * GIB))
    assert not cluster.has_room_for_decode_pools()
    said = capsys.readouterr()
    assert "prefilled again" in said.out + said.err
    monkeypatch.setattr(local_cluster, "shm_room", lambda: free(5 * GIB))
    assert cluster.has_room_for_decode_pools()
