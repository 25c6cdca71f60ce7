"""Pools of several ranks on both sides: whatever the two numbers are, every head's bytes arrive where they belong."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path

import msgspec
import pytest
import torch
from torch import Tensor

from decode_worker.shard_receiver import ShardReceiver
from engine.tensor_parallel import Shard, kv_heads_of
from errors import KVTransferFailed
from kv_transfer.checksum import BlockSummer
from kv_transfer.copy_runs import BlockCut
from kv_transfer.driver import Driver
from kv_transfer.head_split import HeadSplit
from kv_transfer.offer_check import OfferGone
from kv_transfer.receiver import KVReceiver
from kv_transfer.selection import Place
from kv_transfer.sender import KVSender
from kv_transfer.shared_memory import ShmDriver
from messages.kv_transfer import PoolExport
from tests.kv_transfer.test_cuda_ipc import Process

NUM_BLOCKS, MAX_OFFERS = 6, 4
SOURCES, TARGETS = [4, 0, 5], [1, 2, 0]
SPLIT = HeadSplit(num_rows=6, num_kv_heads=4, head_bytes=40)
ALIGNED = HeadSplit(num_rows=6, num_kv_heads=4, head_bytes=48)  # as every head is on a GPU


@contextmanager
def owner_of(
    driver: Driver, num_ranks: int, whole: Tensor, device: str = "cpu", split: HeadSplit = SPLIT
) -> Iterator[tuple[KVSender, PoolExport]]:
    """Rank 0's sender, which the others follow. Each has its heads of `whole`, [blocks, rows, heads, head_bytes]."""
    with ExitStack() as stack:
        senders = []
        for rank in range(num_ranks):
            block_bytes = split.block_bytes(num_ranks)
            sender = stack.enter_context(
                KVSender.create(f"p-{rank}", len(whole), block_bytes, "layout", MAX_OFFERS, driver)
            )
            heads = kv_heads_of(split.num_kv_heads, Shard(rank, num_ranks))
            sender.buffer.copy_(whole[:, :, heads.start : heads.stop].reshape(-1))
            senders.append(sender)
        first, *others = [sender.export("here", device) for sender in senders]
        for other in others:
            senders[0].follow(other)
        yield senders[0], msgspec.structs.replace(first, ranks=tuple(others))


@contextmanager
def receivers_of(
    driver: Driver, num_ranks: int, place: Place, split: HeadSplit = SPLIT
) -> Iterator[list[ShardReceiver]]:
    def open_receiver(cut: BlockCut) -> KVReceiver:
        return KVReceiver("layout", cut.source_block_bytes, driver, place=place, cut=cut)

    receivers = [ShardReceiver(split, Shard(rank, num_ranks), open_receiver) for rank in range(num_ranks)]
    yield receivers
    for receiver in receivers:
        receiver.close()


def random_whole(num_blocks: int = NUM_BLOCKS, split: HeadSplit = SPLIT) -> Tensor:
    return torch.randint(0, 256, (num_blocks, split.num_rows, split.num_kv_heads, split.head_bytes), dtype=torch.uint8)


def new_pool(num_ranks: int, num_blocks: int = NUM_BLOCKS, split: HeadSplit = SPLIT) -> Tensor:
    return torch.full((num_blocks, split.block_bytes(num_ranks)), 7, dtype=torch.uint8)


def assert_arrived(
    pool: Tensor, whole: Tensor, shard: Shard, sources: list[int] = SOURCES, targets: list[int] = TARGETS
) -> None:
    num_blocks, num_rows, num_kv_heads, head_bytes = whole.shape
    heads = kv_heads_of(num_kv_heads, shard)
    arrived = pool.view(num_blocks, num_rows, len(heads), head_bytes)
    assert torch.equal(arrived[targets], whole[:, :, heads.start : heads.stop][sources])
    others = [block for block in range(num_blocks) if block not in targets]
    assert (arrived[others] == 7).all(), "nothing else was written"


@pytest.mark.parametrize("source_ranks, target_ranks", list(product((1, 2, 4, 8), (1, 2, 4, 8))))
def test_every_pair_of_numbers_of_ranks(shm_directory: Path, source_ranks: int, target_ranks: int) -> None:
    driver, whole = ShmDriver(shm_directory), random_whole()
    with (
        owner_of(driver, source_ranks, whole) as (sender, export),
        receivers_of(driver, target_ranks, Place("here")) as receivers,
    ):
        for turn in range(3):  # slots and generations stay alike
            handle = sender.offer(f"t{turn}", SOURCES, 40)
            assert handle.num_ranks == source_ranks
            pools = [new_pool(target_ranks) for _ in receivers]
            for rank, receiver in enumerate(receivers):
                receiver.pull(handle, pools[rank], TARGETS, export)
                assert_arrived(pools[rank], whole, Shard(rank, target_ranks))
            assert sender.withdraw(f"t{turn}")
            for rank, receiver in enumerate(receivers):
                with pytest.raises(OfferGone):
                    receiver.pull(handle, pools[rank], TARGETS, export)
        assert all(receiver.counts["shared_memory"].pulls >= 3 for receiver in receivers)


@pytest.mark.parametrize("num_copied", [1, 27])
@pytest.mark.parametrize("source_ranks, target_ranks", list(product((1, 2, 4), (1, 2, 4))))
def test_over_cuda_ipc(shm_directory: Path, source_ranks: int, target_ranks: int, num_copied: int) -> None:
    """Cut otherwise, all blocks that a rank has of another go in one launch; cut alike, copy engines have them."""
    owner, puller = Process(shm_directory, gpus=(3,)), Process(shm_directory, gpus=(5, 3), peers=frozenset({3}))
    num_blocks = num_copied + 5
    whole, place = random_whole(num_blocks, ALIGNED), Place("here", puller.device.uuid, puller.device.readable_uuids())
    sources, targets = (torch.randperm(num_blocks)[:num_copied].tolist() for _ in range(2))
    with (
        owner_of(owner.driver, source_ranks, whole, owner.device.uuid, ALIGNED) as (sender, export),
        receivers_of(puller.driver, target_ranks, place, ALIGNED) as receivers,
    ):
        handle = sender.offer("t", sources, 40)
        for rank, receiver in enumerate(receivers):
            pool = new_pool(target_ranks, num_blocks, ALIGNED)
            puller.cuda.calls.clear()
            receiver.pull(handle, pool, targets, export)
            assert not puller.cuda.pending, "the copy stream was waited for"
            assert_arrived(pool, whole, Shard(rank, target_ranks), sources, targets)
            num_asked = max(1, source_ranks // target_ranks)
            assert receiver.counts["cuda_ipc"].pulls == num_asked
            calls = puller.cuda.calls
            assert calls["launch"] == (0 if source_ranks == target_ranks else num_asked)
            assert bool(calls["cuMemcpyAsync"]) == (source_ranks == target_ranks)


def test_an_owner_whose_ranks_are_not_known(shm_directory: Path) -> None:
    driver = ShmDriver(shm_directory)
    with (
        owner_of(driver, 2, random_whole()) as (sender, export),
        receivers_of(driver, 1, Place("here")) as (receiver,),
    ):
        handle = sender.offer("t", SOURCES, 40)
        for said in (None, msgspec.structs.replace(export, ranks=())):
            with pytest.raises(KVTransferFailed, match="of 2 ranks, of 1 is known where they are"):
                receiver.pull(handle, new_pool(1), TARGETS, said)
        for absurd in (0, 1, 3, 1 << 40):
            lying = msgspec.structs.replace(handle, num_ranks=absurd)
            with pytest.raises(KVTransferFailed, match=f"of {absurd} ranks, of 2 is known"):
                receiver.pull(lying, new_pool(1), TARGETS, export)
        three = msgspec.structs.replace(export, ranks=export.ranks * 2)
        with pytest.raises(KVTransferFailed, match="4 KV heads cannot be split over 3 ranks"):
            receiver.pull(msgspec.structs.replace(handle, num_ranks=3), new_pool(1), TARGETS, three)
        lying = msgspec.structs.replace(handle, num_ranks=1)
        with pytest.raises(KVTransferFailed, match="another KV layout"):
            receiver.pull(lying, new_pool(1), TARGETS, msgspec.structs.replace(export, ranks=()))


def test_whoever_follows_must_be_like_us(shm_directory: Path) -> None:
    driver = ShmDriver(shm_directory)
    with (
        KVSender.create("p-0", NUM_BLOCKS, 64, "layout", MAX_OFFERS, driver) as sender,
        KVSender.create("p-1", NUM_BLOCKS + 1, 64, "layout", MAX_OFFERS, driver) as other,
        pytest.raises(KVTransferFailed, match="has 7 blocks, ours has 6"),
    ):
        sender.follow(other.export("here"))


def test_every_rank_looks_at_its_own_bytes(shm_directory: Path) -> None:
    driver, summer = ShmDriver(shm_directory), BlockSummer()

    def open_receiver(cut: BlockCut) -> KVReceiver:
        return KVReceiver("layout", cut.source_block_bytes, driver, place=Place("here"), cut=cut, summer=summer)

    block_bytes = SPLIT.block_bytes(2)
    with (
        KVSender.create("p-0", NUM_BLOCKS, block_bytes, "layout", MAX_OFFERS, driver, summer) as sender,
        KVSender.create("p-1", NUM_BLOCKS, block_bytes, "layout", MAX_OFFERS, driver) as follower,
    ):
        for one in (sender, follower):
            one.buffer.random_(256)
        other = follower.export("here")
        sender.follow(other)
        export = msgspec.structs.replace(sender.export("here"), ranks=(other,))
        handle = sender.offer("t", SOURCES, 40)
        receivers = [ShardReceiver(SPLIT, Shard(rank, 2), open_receiver) for rank in range(2)]
        for receiver in receivers:
            receiver.pull(handle, new_pool(2), TARGETS, export)
        follower.buffer[SOURCES[1] * block_bytes] ^= 1
        receivers[0].pull(handle, new_pool(2), TARGETS, export)
        with pytest.raises(KVTransferFailed, match="other bytes"):
            receivers[1].pull(handle, new_pool(2), TARGETS, export)
        for receiver in receivers:
            receiver.close()


def test_ranks_of_another_epoch_are_not_this_handles(shm_directory: Path) -> None:
    driver = ShmDriver(shm_directory)
    with (
        owner_of(driver, 2, random_whole()) as (sender, export),
        receivers_of(driver, 2, Place("here")) as receivers,
    ):
        handle = sender.offer("t", SOURCES, 40)
        stale = msgspec.structs.replace(export, pool_epoch=export.pool_epoch + 1)
        for receiver in receivers:
            with pytest.raises(KVTransferFailed, match="said of another pool or epoch"):
                receiver.pull(handle, new_pool(2), TARGETS, stale)
