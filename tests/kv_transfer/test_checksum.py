"""Whether what arrived is what was offered: by which memory and settings it is told."""

from collections.abc import Iterator

import msgspec
import pytest
import torch

from errors import KVTransferFailed
from kernels import cpu_build
from kernels.block_sums import CpuBlockSums
from kv_transfer.checksum import BlockSummer, start_summer
from kv_transfer.receiver import KVReceiver
from kv_transfer.sender import KVSender
from kv_transfer.shared_memory import ShmDriver
from settings.kv import TransferSettings

NUM_BLOCKS, BLOCK_BYTES = 8, 101


@pytest.fixture(params=["torch", "compiled"])
def summer(request: pytest.FixtureRequest) -> BlockSummer:
    if request.param == "torch":
        return BlockSummer()
    library = cpu_build.load()
    if library is None:
        pytest.skip("no C++ kernels here")
    return BlockSummer(CpuBlockSums(library))


@pytest.fixture
def sender(driver: ShmDriver) -> Iterator[KVSender]:
    with KVSender.create("p", NUM_BLOCKS, BLOCK_BYTES, "layout", 4, driver, BlockSummer()) as sender:
        sender.buffer.random_(256)
        yield sender


def pool() -> torch.Tensor:
    return torch.zeros(NUM_BLOCKS, BLOCK_BYTES, dtype=torch.uint8)


def test_any_changed_bit_is_noticed(sender: KVSender, driver: ShmDriver, summer: BlockSummer) -> None:
    receiver, into = KVReceiver("layout", BLOCK_BYTES, driver, summer=summer), pool()
    handle = sender.offer("t", [3, 6, 0], 40)
    for place in range(BLOCK_BYTES):
        sender.buffer[6 * BLOCK_BYTES + place] ^= 1 << place % 8
        with pytest.raises(KVTransferFailed, match="other bytes have arrived than were offered"):
            receiver.pull(handle, into, [1, 0, 5])
        sender.buffer[6 * BLOCK_BYTES + place] ^= 1 << place % 8
    sender.buffer[7 * BLOCK_BYTES] ^= 1  # nobody's
    receiver.pull(handle, into, [1, 0, 5])
    assert torch.equal(into[[1, 0, 5]], sender.buffer.view(NUM_BLOCKS, -1)[[3, 6, 0]])
    receiver.close()


def test_both_ends_decide_for_themselves(sender: KVSender, driver: ShmDriver, summer: BlockSummer) -> None:
    handle = sender.offer("t", [3, 6], 30)
    sender.buffer[3 * BLOCK_BYTES] ^= 1
    without = KVReceiver("layout", BLOCK_BYTES, driver)
    without.pull(handle, pool(), [0, 1])
    with_it = KVReceiver("layout", BLOCK_BYTES, driver, summer=summer)
    with_it.pull(msgspec.structs.replace(handle, is_summed=False), pool(), [0, 1])
    for receiver in (without, with_it):
        receiver.close()


def test_the_settings_say_where_blocks_are_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert start_summer(TransferSettings(checksum="off"), cpu) is None
    assert start_summer(TransferSettings(), gpu) is None
    assert start_summer(TransferSettings(checksum="on"), gpu) is not None
    monkeypatch.setattr(cpu_build, "load", lambda: None)
    assert start_summer(TransferSettings(), cpu) is None
    assert start_summer(TransferSettings(checksum="on"), cpu) is not None


def test_the_same_block_is_not_offered_twice(sender: KVSender) -> None:
    with pytest.raises(ValueError, match="the same block twice"):
        sender.offer("t", [3, 3], 30)
