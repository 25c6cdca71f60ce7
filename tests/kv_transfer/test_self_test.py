from pathlib import Path

import pytest
import torch

from errors import DeviceError, KVTransferFailed
from kv_transfer.copy_runs import BlockCopies
from kv_transfer.segment import Segment
from kv_transfer.self_test import self_test
from kv_transfer.shared_memory import ShmDriver


def pools_in_shm() -> list[str]:
    return sorted(path.name for path in Path("/dev/shm").glob("pdq-self-test-*"))


def test_it_passes_here_and_leaves_nothing(driver: ShmDriver, shm_directory: Path) -> None:
    self_test(driver)
    assert list(shm_directory.iterdir()) == []
    before = pools_in_shm()
    self_test()  # in /dev/shm itself
    assert pools_in_shm() == before


class FlippedBit(ShmDriver):
    def copy(self, pool: Segment, head_bytes: int, into: torch.Tensor, copies: BlockCopies) -> None:
        super().copy(pool, head_bytes, into, copies)
        last = copies.runs()[-1]
        into[last.target_byte + last.num_bytes - 1] ^= 1


class NoCopy(ShmDriver):
    def copy(self, pool: Segment, head_bytes: int, into: torch.Tensor, copies: BlockCopies) -> None:
        pass


class OneByteTooFar(ShmDriver):
    def copy(self, pool: Segment, head_bytes: int, into: torch.Tensor, copies: BlockCopies) -> None:
        super().copy(pool, head_bytes, into, copies)
        into[copies.runs()[0].num_bytes] = 1


class WholeBlocksOnly(ShmDriver):
    def copy(self, pool: Segment, head_bytes: int, into: torch.Tensor, copies: BlockCopies) -> None:
        if copies.cut.is_whole:
            super().copy(pool, head_bytes, into, copies)


class PrivateMapping(ShmDriver):
    """Memory that is not shared: what the owner writes after the import is never seen."""

    def import_mem(self, name: str) -> Segment:
        pool = super().import_mem(name)
        pool.mapping = type(pool.mapping)(-1, len(pool.mapping))
        return pool


class FrozenGenerations(ShmDriver):
    """The importer keeps its first look at the head."""

    def import_mem(self, name: str) -> Segment:
        pool = super().import_mem(name)
        copied = type(pool.mapping)(-1, len(pool.mapping))
        copied[:] = pool.mapping[:]
        pool.mapping = copied
        return pool


class NoImport(ShmDriver):
    def import_mem(self, name: str) -> Segment:
        raise KVTransferFailed(f"pool {name} cannot be opened: Permission denied")


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (FlippedBit, "other bytes were read"),
        (NoCopy, "other bytes were read"),
        (OneByteTooFar, "other bytes were read"),
        (WholeBlocksOnly, "other bytes were read"),
        (PrivateMapping, "no KV pool"),
        (FrozenGenerations, "withdrawn offer could still be pulled"),
        (NoImport, "Permission denied"),
    ],
)
def test_it_fails_when_the_transport_does(broken: type[ShmDriver], reason: str, shm_directory: Path) -> None:
    with pytest.raises(DeviceError, match=f"self-test of the shared_memory transport: .*{reason}"):
        self_test(broken(shm_directory))
    assert list(shm_directory.iterdir()) == []
