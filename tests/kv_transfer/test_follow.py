"""The pools of a worker's ranks carry one offer: it stands in all of them, or in none."""

from collections.abc import Iterator

import msgspec
import pytest
import torch

from errors import KVTransferFailed
from kv_transfer.receiver import KVReceiver
from kv_transfer.sender import KVSender
from kv_transfer.shared_memory import ShmDriver
from messages.kv_transfer import PoolExport

BLOCK_BYTES = 64


@pytest.fixture
def senders(driver: ShmDriver) -> Iterator[list[KVSender]]:
    """Ranks 0 to 2; rank 0 has had offers of its own kind before, as every sender may."""
    made = [KVSender.create(f"p-{rank}", 4, BLOCK_BYTES, "layout", 2, driver) for rank in range(3)]
    for rank, sender in enumerate(made):
        sender.buffer.fill_(rank + 1)
    for sender in made[1:]:
        made[0].follow(sender.export("host"))
    yield made
    for sender in made:
        sender.close()


def test_an_offer_stands_in_every_pool_until_it_is_withdrawn(senders: list[KVSender], driver: ShmDriver) -> None:
    receiver = KVReceiver("layout", BLOCK_BYTES, driver)
    for round_number in range(3):  # slots and generations stay alike
        handle = senders[0].offer(f"t{round_number}", [2, 0], 16)
        assert handle.num_ranks == 3
        assert [sender.has_offers() for sender in senders] == [True] * 3, "a rank that follows is as busy as rank 0"
        for rank, sender in enumerate(senders):
            own = msgspec.structs.replace(handle, pool=sender.pool, pool_epoch=sender.export("host").pool_epoch)
            pool = torch.zeros((4, BLOCK_BYTES), dtype=torch.uint8)
            receiver.pull(own, pool, [1, 3])
            assert pool[[1, 3]].eq(rank + 1).all()
        senders[0].withdraw(f"t{round_number}")
        assert [sender.has_offers() for sender in senders] == [False] * 3
        for sender in senders:
            own = msgspec.structs.replace(handle, pool=sender.pool, pool_epoch=sender.export("host").pool_epoch)
            with pytest.raises(KVTransferFailed, match="no longer offered"):
                receiver.pull(own, torch.zeros((4, BLOCK_BYTES), dtype=torch.uint8), [1, 3])
    receiver.close()


def test_closing_withdraws_in_every_pool(senders: list[KVSender], driver: ShmDriver) -> None:
    receiver = KVReceiver("layout", BLOCK_BYTES, driver)
    handle = senders[0].offer("t", [1], 16)
    export = senders[2].export("host")
    senders[0].close()
    own = msgspec.structs.replace(handle, pool=export.pool, pool_epoch=export.pool_epoch)
    with pytest.raises(KVTransferFailed, match="no longer offered"):
        receiver.pull(own, torch.zeros((4, BLOCK_BYTES), dtype=torch.uint8), [1])
    receiver.close()


def test_only_a_pool_like_ours_may_follow(senders: list[KVSender], driver: ShmDriver) -> None:
    with KVSender.create("other", 5, BLOCK_BYTES, "layout", 2, driver) as other:
        with pytest.raises(KVTransferFailed, match="has 5 blocks, ours has 4"):
            senders[0].follow(other.export("host"))
    gone = PoolExport("x", "pdq-x-0123456789abcdef", 1, "host", "cpu", BLOCK_BYTES, 4)
    with pytest.raises(KVTransferFailed, match="is gone"):
        senders[0].follow(gone)
