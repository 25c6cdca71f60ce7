"""Pools of several ranks on both sides: whatever the two numbers are, every head's bytes arrive where they belong."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import msgspec
import pytest
import torch
from torch import Tensor

from kv_transfer.copy_runs import BlockCut
from kv_transfer.cuda_device import CudaDevice
from kv_transfer.cuda_ipc import CudaIpcDriver
from kv_transfer.driver import Driver
from kv_transfer.head_split import HeadSplit
from kv_transfer.offer_check import OfferGone
from kv_transfer.receiver import KVReceiver
from kv_transfer.selection import Place
from kv_transfer.sender import KVSender
from kv_transfer.sharded_receiver import ShardedReceiver
from kv_transfer.sharded_sender import ShardedSender
from kv_transfer.shared_memory import ShmDriver
from messages import KVTransferFailed, PoolExport
from tests.kv_transfer.fake_cuda import FakeCuda
from tests.kv_transfer.test_cuda_ipc import Process, _tensor

NUM_BLOCKS, SLOTS = 6, 4
SOURCES, TARGETS = [4, 0, 5], [1, 2, 0]
SPLIT = HeadSplit(num_rows=6, num_kv_heads=4, head_bytes=40)


def heads_of(rank: int, num_ranks: int, num_kv_heads: int = 4) -> range:
    count = max(1, num_kv_heads // num_ranks)
    first = rank * num_kv_heads // num_ranks
    return range(first, first + count)


def new_sender(driver: Driver, num_ranks: int, whole: Tensor) -> ShardedSender:
    """Each rank has its heads of `whole`, [blocks, rows, heads, head_bytes]."""
    senders = []
    for rank in range(num_ranks):
        sender = KVSender.create("p", NUM_BLOCKS, SPLIT.block_bytes(num_ranks), "layout", SLOTS, driver)
        heads = heads_of(rank, num_ranks)
        sender.buffer.copy_(whole[:, :, heads.start : heads.stop].reshape(-1))
        senders.append(sender)
    return ShardedSender(senders)


def new_receiver(driver: Driver, num_ranks: int, place: Place) -> ShardedReceiver:
    def receiver_of(rank: int, cut: BlockCut) -> KVReceiver:
        return KVReceiver("layout", cut.source_block_bytes, driver, place=place, cut=cut)

    return ShardedReceiver(SPLIT, num_ranks, receiver_of)


def new_pools(num_ranks: int) -> list[Tensor]:
    return [torch.full((NUM_BLOCKS, SPLIT.block_bytes(num_ranks)), 7, dtype=torch.uint8) for _ in range(num_ranks)]


def random_whole() -> Tensor:
    return torch.randint(0, 256, (NUM_BLOCKS, SPLIT.num_rows, SPLIT.num_kv_heads, SPLIT.head_bytes), dtype=torch.uint8)


def assert_arrived(pools: list[Tensor], whole: Tensor) -> None:
    for rank, pool in enumerate(pools):
        heads = heads_of(rank, len(pools))
        arrived = pool.view(NUM_BLOCKS, SPLIT.num_rows, len(heads), SPLIT.head_bytes)
        assert torch.equal(arrived[TARGETS], whole[:, :, heads.start : heads.stop][SOURCES])
        others = [block for block in range(NUM_BLOCKS) if block not in TARGETS]
        assert (arrived[others] == 7).all(), "nothing else was written"


@pytest.fixture
def here() -> Place:
    return Place("here")


@pytest.mark.parametrize("source_ranks, target_ranks", list(product((1, 2, 4, 8), (1, 2, 4, 8))))
def test_every_pair_of_numbers_of_ranks(driver: ShmDriver, here: Place, source_ranks: int, target_ranks: int) -> None:
    whole = random_whole()
    sender, receiver = new_sender(driver, source_ranks, whole), new_receiver(driver, target_ranks, here)
    try:
        export = sender.export("here", ["cpu"] * source_ranks, [{}] * source_ranks)
        assert len(export.shards) == source_ranks - 1
        for turn in range(3):  # slots and generations stay in step
            pools = new_pools(target_ranks)
            handle = sender.offer(f"t{turn}", SOURCES, 40)
            receiver.pull(handle, pools, TARGETS, export)
            assert_arrived(pools, whole)
            assert sender.withdraw(f"t{turn}")
            with pytest.raises(OfferGone):
                receiver.pull(handle, pools, TARGETS, export)
        wanted_bytes = 3 * sum(
            len(SOURCES) * SPLIT.block_bytes(source_ranks) * len(SPLIT.cuts(source_ranks, target_ranks, rank))
            for rank in range(target_ranks)
        )
        assert receiver.counts["shared_memory"].num_bytes == wanted_bytes
    finally:
        receiver.close()
        sender.close()


def test_over_cuda_ipc_a_cut_is_one_rectangle_per_block(shm_directory: Path) -> None:
    owner, puller = Process(shm_directory, gpus=(3,)), Process(shm_directory, gpus=(5, 3), peers=frozenset({3}))
    whole = random_whole()
    sender = new_sender(owner.driver, 2, whole)
    place = Place("here", puller.device.uuid, puller.device.readable_uuids())
    receiver = new_receiver(puller.driver, 4, place)
    try:
        pools = new_pools(4)
        export = sender.export("here", [owner.device.uuid] * 2, [{}] * 2)
        receiver.pull(sender.offer("t", SOURCES, 40), pools, TARGETS, export)
        assert_arrived(pools, whole)
    finally:
        receiver.close()
        sender.close()


def test_an_owner_whose_ranks_are_not_known(driver: ShmDriver, here: Place) -> None:
    """Its export is gone with it, or is another pool's: the blocks of rank 0 are not the whole sequence's."""
    sender, receiver = new_sender(driver, 2, random_whole()), new_receiver(driver, 1, here)
    try:
        export = sender.export("here", ["cpu"] * 2, [{}] * 2)
        handle = sender.offer("t", SOURCES, 40)
        for said in (None, msgspec.structs.replace(export, pool_epoch=1), msgspec.structs.replace(export, shards=())):
            with pytest.raises(KVTransferFailed, match="another KV layout"):
                receiver.pull(handle, new_pools(1), TARGETS, said)
        three = msgspec.structs.replace(export, shards=export.shards * 2)
        with pytest.raises(KVTransferFailed, match="4 KV heads cannot be split over 3 ranks"):
            receiver.pull(handle, new_pools(1), TARGETS, three)
    finally:
        receiver.close()
        sender.close()


def test_a_shard_that_is_gone_fails_the_whole_pull(driver: ShmDriver, here: Place) -> None:
    sender, receiver = new_sender(driver, 2, random_whole()), new_receiver(driver, 2, here)
    try:
        export: PoolExport = sender.export("here", ["cpu"] * 2, [{}] * 2)
        handle = sender.offer("t", SOURCES, 40)
        sender.senders[1].close()
        with pytest.raises(KVTransferFailed, match="is gone"):
            receiver.pull(handle, new_pools(2), TARGETS, export)
    finally:
        receiver.close()
        sender.close()


@pytest.fixture(params=["shared_memory", "cuda_ipc"])
def drivers(request: pytest.FixtureRequest, shm_directory: Path) -> Iterator[tuple[Driver, Driver]]:
    """Of two processes of one worker."""
    if request.param == "shared_memory":
        yield ShmDriver(shm_directory), ShmDriver(shm_directory)
        return
    processes = [CudaDevice(0, FakeCuda(shm_directory)) for _ in range(2)]
    for device in processes:
        device.tensor = _tensor  # type: ignore[method-assign]
    yield CudaIpcDriver(processes[0], shm_directory), CudaIpcDriver(processes[1], shm_directory)


def test_another_process_of_the_worker_writes_the_pool(drivers: tuple[Driver, Driver]) -> None:
    with KVSender.create("p", 2, 64, "layout", 1, drivers[0]) as sender:
        attached = drivers[1].attach(sender.pool)
        assert attached.numel() == sender.buffer.numel() == 128
        attached[5] = 99
        assert sender.buffer[5] == 99
    with pytest.raises(KVTransferFailed):
        drivers[1].attach("pdq-nobody-0123456789abcdef")
