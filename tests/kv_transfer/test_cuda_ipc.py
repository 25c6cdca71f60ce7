"""The CUDA IPC transport over a fake of the driver: right bytes or a refusal, whatever fails."""

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
import torch
from cuda.bindings import driver as cuda

from errors import DeviceError, KVTransferFailed
from kernels.block_copy import reshard_blocks
from kv_transfer.copy_runs import BlockCopies, BlockCut
from kv_transfer.cuda_device import CudaDevice, CudaFailure
from kv_transfer.cuda_ipc import CudaIpcDriver
from kv_transfer.host_copy import copy_on_host
from kv_transfer.receiver import KVReceiver
from kv_transfer.selection import Place
from kv_transfer.self_test import self_test
from kv_transfer.sender import KVSender
from messages.kv_transfer import PoolExport
from tests.kv_transfer.fake_cuda import FakeCuda

BLOCK_BYTES, NUM_BLOCKS = 5003, 16
SOURCES, TARGETS = [3, 4, 0, 15], [7, 8, 1, 0]


def _tensor(pointer: int, num_bytes: int) -> torch.Tensor:
    """Fake device memory is host memory."""
    return torch.frombuffer((ctypes.c_uint8 * num_bytes).from_address(pointer), dtype=torch.uint8)


class Process:
    """A worker on fake GPUs: the first of them is its own."""

    def __init__(self, directory: Path, gpus: tuple[int, ...] = (0,), peers: frozenset[int] = frozenset()) -> None:
        self.cuda = FakeCuda(directory, gpus, peers)
        self.device = CudaDevice(0, self.cuda)
        self.device.tensor = _tensor  # type: ignore[method-assign]
        self.device.launching = self.cuda.launching  # type: ignore[method-assign]
        self.driver = CudaIpcDriver(self.device, directory)

    def sender(self) -> KVSender:
        sender = KVSender.create("prefill-1", NUM_BLOCKS, BLOCK_BYTES, "layout", 4, self.driver)
        sender.buffer.copy_(torch.randint(0, 256, sender.buffer.shape, dtype=torch.uint8))
        return sender

    def receiver(self) -> KVReceiver:
        place = Place("here", self.device.uuid, self.device.readable_uuids())
        return KVReceiver("layout", BLOCK_BYTES, self.driver, place=place)


def export_of(owner: Process, sender: KVSender) -> PoolExport:
    return sender.export("here", owner.device.uuid)


def empty_pool() -> torch.Tensor:
    return torch.zeros(NUM_BLOCKS, BLOCK_BYTES, dtype=torch.uint8)


@pytest.fixture
def owner(shm_directory: Path) -> Iterator[Process]:
    yield Process(shm_directory, gpus=(3,))


@pytest.fixture
def sender(owner: Process) -> Iterator[KVSender]:
    with owner.sender() as sender:
        yield sender


def contents(sender: KVSender) -> torch.Tensor:
    return sender.buffer.view(NUM_BLOCKS, BLOCK_BYTES)


@pytest.mark.parametrize(
    ("gpus", "peers"), [((3,), frozenset()), ((1, 0, 3), frozenset({3}))], ids=["the same GPU", "a peer's"]
)
def test_blocks_of_another_process(
    owner: Process, sender: KVSender, shm_directory: Path, gpus: tuple[int, ...], peers: frozenset[int]
) -> None:
    puller = Process(shm_directory, gpus, peers)
    receiver, pool = puller.receiver(), empty_pool()
    for turn in range(3):
        receiver.pull(sender.offer(f"t{turn}", SOURCES, 60), pool, TARGETS, export_of(owner, sender))
        assert torch.equal(pool[TARGETS], contents(sender)[SOURCES])
    assert receiver.counts["cuda_ipc"].pulls == 3
    assert len(puller.cuda.opened) == 1, "one mapping serves every pull"
    receiver.close()
    assert not puller.cuda.opened


def test_a_gpu_out_of_reach_is_not_even_tried(owner: Process, sender: KVSender, shm_directory: Path) -> None:
    puller = Process(shm_directory, (1, 3))
    with pytest.raises(KVTransferFailed, match="cannot be reached"):
        puller.receiver().pull(sender.offer("t", SOURCES, 60), empty_pool(), TARGETS, export_of(owner, sender))
    with pytest.raises(KVTransferFailed, match="lies on GPU-03030303-.*, which GPU-01010101-.* cannot read"):
        puller.driver.import_mem(sender.pool)


def test_a_withdrawn_offer(owner: Process, sender: KVSender, shm_directory: Path) -> None:
    receiver, handle = Process(shm_directory, (3,)).receiver(), sender.offer("t", SOURCES, 60)
    sender.withdraw("t")
    with pytest.raises(KVTransferFailed, match="no longer offered"):
        receiver.pull(handle, empty_pool(), TARGETS, export_of(owner, sender))


def test_an_offer_withdrawn_while_it_is_copied(owner: Process, sender: KVSender, shm_directory: Path) -> None:
    puller = Process(shm_directory, (3,))
    handle = sender.offer("t", SOURCES, 60)
    synchronize = puller.cuda.cuStreamSynchronize

    class Withdrawing(FakeCuda):
        def cuStreamSynchronize(self, stream: object) -> tuple[object, ...]:
            sender.withdraw("t")
            return synchronize(stream)

    puller.cuda.__class__ = Withdrawing
    with pytest.raises(KVTransferFailed, match="withdrawn while it was pulled"):
        puller.receiver().pull(handle, empty_pool(), TARGETS, export_of(owner, sender))


def test_nothing_is_pulled_from_the_dead(owner: Process, sender: KVSender, shm_directory: Path) -> None:
    puller = Process(shm_directory, (3,))
    receiver, handle, export = puller.receiver(), sender.offer("t", SOURCES, 60), export_of(owner, sender)
    receiver.pull(handle, empty_pool(), TARGETS, export)
    sender._segment.close()  # what the kernel does for a killed process: its lock is gone, the name is not
    with pytest.raises(KVTransferFailed, match="its owner is dead"):
        receiver.pull(handle, empty_pool(), TARGETS, export)
    assert receiver.prune() == 1 and not puller.cuda.opened
    with pytest.raises(KVTransferFailed, match="is gone"):
        puller.receiver().pull(handle, empty_pool(), TARGETS, export)
    assert owner.driver.sweep() == [sender.pool]


ERRORS = {
    "cuIpcOpenMemHandle": cuda.CUresult.CUDA_ERROR_INVALID_CONTEXT,
    "cuMemGetAddressRange": cuda.CUresult.CUDA_ERROR_NOT_FOUND,
    "cuMemcpyAsync": cuda.CUresult.CUDA_ERROR_PEER_ACCESS_NOT_ENABLED,
    "cuStreamSynchronize": cuda.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS,
    "cuCtxSetCurrent": cuda.CUresult.CUDA_ERROR_CONTEXT_IS_DESTROYED,
}


@pytest.mark.parametrize("function", ERRORS)
def test_whatever_fails_the_pull_says_so(owner: Process, sender: KVSender, shm_directory: Path, function: str) -> None:
    puller = Process(shm_directory, (3,))
    receiver, handle, export = puller.receiver(), sender.offer("t", SOURCES, 60), export_of(owner, sender)
    puller.cuda.errors[function] = ERRORS[function]
    with pytest.raises(KVTransferFailed, match=f"{function}: {ERRORS[function].name}"):
        receiver.pull(handle, empty_pool(), TARGETS, export)
    puller.cuda.errors.clear()
    puller.cuda.pending.clear()
    pool = empty_pool()
    receiver.pull(handle, pool, TARGETS, export)
    assert torch.equal(pool[TARGETS], contents(sender)[SOURCES])


CUT = BlockCut(6 * 160, 6 * 96, num_rows=6, source_byte=64, target_byte=16, row_bytes=80)


@pytest.mark.parametrize("num_copied", [1, 2, 91])
def test_a_cut_is_one_launch_however_many_blocks(shm_directory: Path, num_copied: int) -> None:
    process, num_blocks = Process(shm_directory), num_copied + 3
    source = torch.randint(0, 256, (num_blocks * CUT.source_block_bytes,), dtype=torch.uint8)
    copies = BlockCopies(CUT, *(torch.randperm(num_blocks)[:num_copied].tolist() for _ in range(2)))
    targets = [torch.zeros(num_blocks * CUT.target_block_bytes, dtype=torch.uint8) for _ in range(3)]
    process.cuda.calls.clear()
    process.driver.copy_within(source, targets[0], copies)
    assert process.cuda.calls == {"cuCtxSetCurrent": 1, "launch": 1, "cuStreamSynchronize": 1}
    assert not process.cuda.pending
    copy_on_host(source, targets[1], copies)
    reshard_blocks(
        source,
        targets[2],
        torch.tensor([copies.source_ids, copies.target_ids], dtype=torch.int32),
        num_rows=CUT.num_rows,
        row_bytes=CUT.run_bytes,
        source_block_bytes=CUT.source_block_bytes,
        source_byte=CUT.source_byte,
        target_block_bytes=CUT.target_block_bytes,
        target_byte=CUT.target_byte,
    )
    assert torch.equal(targets[0], targets[1]) and torch.equal(targets[0], targets[2])


def test_what_is_launched_goes_to_the_copy_stream(shm_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's part of it, which needs a GPU, is replaced: what matters is which stream of which device is current."""
    entered: list[tuple[int, torch.device]] = []

    def enter(stream: tuple[int, torch.device]) -> AbstractContextManager[None]:
        entered.append(stream)
        return nullcontext()

    monkeypatch.setattr("torch.cuda.ExternalStream", lambda stream, device: (stream, device))
    monkeypatch.setattr("torch.cuda.stream", enter)
    fake = FakeCuda(shm_directory, gpus=(3, 4))
    with CudaDevice(1, fake).launching() as device:
        assert entered == [(int(fake.cuStreamCreate(cuda.CUstream_flags.CU_STREAM_NON_BLOCKING)[1]), device)]
        assert device == torch.device("cuda", 1)


def test_a_launch_that_fails(shm_directory: Path) -> None:
    process, pool = Process(shm_directory), torch.zeros(CUT.source_block_bytes, dtype=torch.uint8)
    process.cuda.errors["launch"] = cuda.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
    process.cuda.calls.clear()
    with pytest.raises(KVTransferFailed, match="reshard_blocks: Triton Error .*CUDA_ERROR_ILLEGAL_ADDRESS"):
        process.driver.copy_within(pool, torch.zeros_like(pool), BlockCopies(CUT, [0], [0]))
    assert process.cuda.calls["cuStreamSynchronize"] == 1, "nothing may still write when this returns"


@pytest.mark.parametrize("function", ["cuMemAlloc", "cuIpcGetMemHandle"])
def test_a_pool_that_cannot_be(shm_directory: Path, function: str) -> None:
    process = Process(shm_directory)
    process.cuda.errors[function] = cuda.CUresult.CUDA_ERROR_OUT_OF_MEMORY
    with pytest.raises(DeviceError, match=rf"2097152 bytes of KV pool on GPU-.*{function}: CUDA_ERROR_OUT_OF_MEMORY"):
        process.sender()
    for path in shm_directory.glob("device-memory-*"):
        path.unlink()


def test_a_thread_of_its_own_needs_no_context_before(owner: Process, sender: KVSender, shm_directory: Path) -> None:
    receiver, pool = Process(shm_directory, (3,)).receiver(), empty_pool()
    handle, export = sender.offer("t", SOURCES, 60), export_of(owner, sender)
    thread = threading.Thread(target=lambda: receiver.pull(handle, pool, TARGETS, export))
    thread.start()
    thread.join(10)
    assert torch.equal(pool[TARGETS], contents(sender)[SOURCES])


def test_the_fake_forgives_nothing(shm_directory: Path) -> None:
    fake = FakeCuda(shm_directory)
    assert fake.cuMemAlloc(64)[0] == cuda.CUresult.CUDA_ERROR_INVALID_CONTEXT
    device = CudaDevice(0, fake)
    pointer = device.alloc(64)
    with pytest.raises(CudaFailure, match="cuIpcOpenMemHandle: CUDA_ERROR_INVALID_CONTEXT"):
        device.open(device.export(pointer))  # its own
    device.free(pointer)
    with pytest.raises(CudaFailure, match="cuDeviceGet: CUDA_ERROR_INVALID_DEVICE"):
        CudaDevice(1, fake)


def test_the_self_test_runs_on_it(shm_directory: Path) -> None:
    """In one process, which cannot open its own handle and does not have to."""
    self_test(Process(shm_directory).driver)


def test_an_owner_that_dies_while_it_is_pulled_from(owner: Process, sender: KVSender, shm_directory: Path) -> None:
    """What was copied may be anything then: its memory goes with it."""
    puller = Process(shm_directory, (3,))
    handle, export = sender.offer("t", SOURCES, 60), export_of(owner, sender)
    synchronize = puller.cuda.cuStreamSynchronize

    class Dying(FakeCuda):
        def cuStreamSynchronize(self, stream: object) -> tuple[object, ...]:
            sender._segment.close()
            return synchronize(stream)

    puller.cuda.__class__ = Dying
    with pytest.raises(KVTransferFailed, match="its owner died while it was pulled"):
        puller.receiver().pull(handle, empty_pool(), TARGETS, export)
    assert owner.driver.sweep() == [sender.pool]


def test_an_offer_stands_in_the_pools_of_all_ranks(owner: Process, shm_directory: Path) -> None:
    other = Process(shm_directory, gpus=(4,))
    with owner.sender() as sender, other.sender() as follower:
        sender.follow(export_of(other, follower))
        sender.offer("t", SOURCES, 60)
        assert follower.has_offers()
        sender.withdraw("t")
        assert not follower.has_offers()


def test_what_fails_when_a_pool_is_let_go_of(shm_directory: Path) -> None:
    owner, puller = Process(shm_directory, (3,)), Process(shm_directory, (3,))
    sender = owner.sender()
    imported = puller.driver.import_mem(sender.pool)
    puller.cuda.errors["cuIpcCloseMemHandle"] = cuda.CUresult.CUDA_ERROR_MAP_FAILED
    puller.driver.close_mem(imported)  # an importer's owner may be gone, and with it what was mapped
    owner.cuda.errors["cuMemFree"] = cuda.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
    with pytest.raises(DeviceError, match=f"KV pool {sender.pool}: cuMemFree: CUDA_ERROR_ILLEGAL_ADDRESS"):
        sender.close()
    for path in shm_directory.glob("device-memory-*"):
        path.unlink()


def test_a_head_without_room_for_a_handle(owner: Process, sender: KVSender, shm_directory: Path) -> None:
    """Anybody may make a segment of a pool's name."""
    os.truncate(shm_directory / sender.pool, 128)
    with pytest.raises(KVTransferFailed, match=f"pool {sender.pool} is cut short"):
        Process(shm_directory, (3,)).driver.import_mem(sender.pool)


def test_a_tensor_over_device_memory(shm_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch is given; that it takes it needs a GPU."""
    device, given = CudaDevice(0, FakeCuda(shm_directory)), []
    monkeypatch.setattr("torch.as_tensor", lambda memory, device: given.append((memory, device)))
    device.tensor(0x7F00_0000_0000, 4096)
    ((memory, where),) = given
    wanted = {"shape": (4096,), "typestr": "|u1", "data": (0x7F00_0000_0000, False), "version": 3}
    assert (memory.__cuda_array_interface__, where) == (wanted, "cuda:0")


def test_a_forged_size(owner: Process, sender: KVSender, shm_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    puller = Process(shm_directory, (3,))
    monkeypatch.setattr(puller.device, "size_of", lambda pointer: NUM_BLOCKS * BLOCK_BYTES - 1)
    with pytest.raises(KVTransferFailed, match="says 80048 bytes and has 80047"):
        puller.receiver().pull(sender.offer("t", SOURCES, 60), empty_pool(), TARGETS, export_of(owner, sender))
    assert not puller.cuda.opened
