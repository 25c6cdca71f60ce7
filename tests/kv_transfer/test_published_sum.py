"""The checksum comes after the offer: who pulls waits for it, and for no other, and not for ever."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import torch

from errors import KVTransferFailed
from kv_transfer import published_sum
from kv_transfer.checksum import BlockSummer
from kv_transfer.offer_check import OfferGone
from kv_transfer.receiver import KVReceiver
from kv_transfer.sender import KVSender
from kv_transfer.shared_memory import ShmDriver
from messages.kv_transfer import KVHandle

NUM_BLOCKS, BLOCK_BYTES = 8, 101
BLOCKS, TARGETS = [3, 6], [0, 1]


@dataclass
class Ends:
    """An owner that offers first and sums later, and who pulls from it."""

    sender: KVSender
    receiver: KVReceiver
    into: torch.Tensor

    def offer(self, transfer_id: str = "t") -> KVHandle:
        return self.sender.offer(transfer_id, BLOCKS, 30, sums_follow=True)

    def pull(self, handle: KVHandle) -> None:
        self.receiver.pull(handle, self.into, TARGETS)


@pytest.fixture
def ends(driver: ShmDriver) -> Iterator[Ends]:
    with KVSender.create("p", NUM_BLOCKS, BLOCK_BYTES, "layout", 1, driver, BlockSummer()) as sender:
        sender.buffer.random_(256)
        receiver = KVReceiver("layout", BLOCK_BYTES, driver, summer=BlockSummer())
        yield Ends(sender, receiver, torch.zeros(NUM_BLOCKS, BLOCK_BYTES, dtype=torch.uint8))
        receiver.close()


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Counts the looks of whoever waits, so that a test knows that it waits."""
    counted = threading.Semaphore(0)

    class Counting:
        monotonic = time.monotonic

        @staticmethod
        def sleep(seconds: float) -> None:
            counted.release()
            time.sleep(seconds)

    monkeypatch.setattr(published_sum, "time", Counting)
    return counted


def test_a_pull_waits_for_the_checksum(ends: Ends, looks: threading.Semaphore) -> None:
    handle = ends.offer()
    with ThreadPoolExecutor(1) as thread:
        pull = thread.submit(ends.pull, handle)
        assert looks.acquire(timeout=10)
        assert not pull.done()
        ends.sender.put_checksums("t", ends.sender.checksums(BLOCKS))
        pull.result(10)
    assert torch.equal(ends.into[TARGETS], ends.sender.buffer.view(NUM_BLOCKS, -1)[BLOCKS])


def test_bytes_that_changed_before_it_came_are_noticed(ends: Ends, looks: threading.Semaphore) -> None:
    checksums = ends.sender.checksums(BLOCKS)
    ends.sender.buffer[BLOCKS[1] * BLOCK_BYTES] ^= 1
    handle = ends.offer()
    with ThreadPoolExecutor(1) as thread:
        pull = thread.submit(ends.pull, handle)
        assert looks.acquire(timeout=10)
        ends.sender.put_checksums("t", checksums)
        with pytest.raises(KVTransferFailed, match="other bytes have arrived"):
            pull.result(10)


def test_an_offer_that_is_withdrawn_meanwhile_is_gone(ends: Ends, looks: threading.Semaphore) -> None:
    handle = ends.offer()
    with ThreadPoolExecutor(1) as thread:
        pull = thread.submit(ends.pull, handle)
        assert looks.acquire(timeout=10)
        ends.sender.withdraw("t")
        with pytest.raises(OfferGone):
            pull.result(10)


def test_an_owner_that_died_says_nothing_any_more(ends: Ends, looks: threading.Semaphore) -> None:
    handle = ends.offer()
    with ThreadPoolExecutor(1) as thread:
        pull = thread.submit(ends.pull, handle)
        assert looks.acquire(timeout=10)
        ends.sender._segment.remove()  # its process has ended, and its name is swept
        with pytest.raises(KVTransferFailed, match="does not say what was offered"):
            pull.result(10)


def test_a_silent_owner_is_not_waited_for_long(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published_sum, "SUM_WAIT_S", 0.01)
    with pytest.raises(KVTransferFailed, match="does not say what was offered"):
        ends.pull(ends.offer())


def test_the_sum_of_an_earlier_offer_of_the_slot_is_not_taken(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published_sum, "SUM_WAIT_S", 0.01)
    first = ends.offer("first")
    checksums = ends.sender.checksums(BLOCKS)
    ends.sender.put_checksums("first", checksums)
    ends.pull(first)
    ends.sender.withdraw("first")
    second = ends.offer("second")
    assert second.slot == first.slot
    ends.sender.put_checksums("first", checksums)  # it was summed for too long
    with pytest.raises(KVTransferFailed, match="does not say what was offered"):
        ends.pull(second)
