"""Sender and receiver in one process: what is pulled, what is refused, and what happens in between."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from errors import DeviceError, KVTransferFailed, WireError
from kv_transfer.copy_runs import BlockCopies, CopyRun, merge_runs, whole_blocks
from kv_transfer.receiver import KVReceiver
from kv_transfer.segment import Segment
from kv_transfer.sender import KVSender
from kv_transfer.shared_memory import ShmDriver
from messages.job import DecodeJob
from messages.kv_transfer import KVHandle
from messages.wire import decode, encode

NUM_BLOCKS = 24
BLOCK_BYTES = 5003  # odd, so that most blocks are not aligned


class SpyDriver(ShmDriver):
    """Records what is copied, insists that it lies inside the pool, and lets a test act around the copy."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.runs: list[CopyRun] = []
        self.before_copy: Callable[[], None] = lambda: None
        self.after_copy: Callable[[], None] = lambda: None

    def copy(self, pool: Segment, head_bytes: int, into: torch.Tensor, copies: BlockCopies) -> None:
        runs = copies.runs()
        for run in runs:
            assert 0 <= run.source_byte and run.source_byte + run.num_bytes <= len(pool.mapping) - head_bytes
            assert 0 <= run.target_byte and run.target_byte + run.num_bytes <= into.numel()
        self.runs.extend(runs)
        self.before_copy()
        super().copy(pool, head_bytes, into, copies)
        self.after_copy()


@pytest.fixture
def spy(shm_directory: Path) -> SpyDriver:
    return SpyDriver(shm_directory)


@pytest.fixture
def sender(spy: SpyDriver) -> Iterator[KVSender]:
    with KVSender.create("prefill-1", NUM_BLOCKS, BLOCK_BYTES, "layout", 4, spy) as sender:
        sender.buffer.random_(256)
        yield sender


@pytest.fixture
def receiver(spy: SpyDriver) -> Iterator[KVReceiver]:
    receiver = KVReceiver("layout", BLOCK_BYTES, spy)
    yield receiver
    receiver.close()


def blocks_of(sender: KVSender) -> torch.Tensor:
    return sender.buffer.view(NUM_BLOCKS, BLOCK_BYTES)


def empty_pool(num_blocks: int = NUM_BLOCKS) -> torch.Tensor:
    return torch.zeros(num_blocks, BLOCK_BYTES, dtype=torch.uint8)


block_tables = st.permutations(range(NUM_BLOCKS)).flatmap(
    lambda ids: st.integers(1, NUM_BLOCKS).map(lambda count: ids[:count])
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sources=block_tables, targets=st.permutations(range(NUM_BLOCKS)))
def test_any_block_table_arrives_whole_and_nothing_else_changes(
    sender: KVSender, receiver: KVReceiver, sources: list[int], targets: list[int]
) -> None:
    targets = targets[: len(sources)]
    pool = torch.full((NUM_BLOCKS, BLOCK_BYTES), 7, dtype=torch.uint8)
    handle = sender.offer("t", sources, num_tokens=1)
    receiver.pull(handle, pool, targets)
    expected = torch.full_like(pool, 7)
    expected[targets] = blocks_of(sender)[sources]
    assert torch.equal(pool, expected)
    assert sender.withdraw("t")


@given(ids=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), unique_by=(lambda p: p[0], lambda p: p[1])))
def test_runs_cover_every_block_once_and_are_as_few_as_can_be(ids: list[tuple[int, int]]) -> None:
    sources, targets = [source for source, _ in ids], [target for _, target in ids]
    runs = merge_runs(sources, targets, 10)
    copied = [
        (run.source_byte // 10 + index, run.target_byte // 10 + index)
        for run in runs
        for index in range(run.num_bytes // 10)
    ]
    assert copied == ids
    for left, right in zip(runs, runs[1:], strict=False):
        source_follows = left.source_byte + left.num_bytes == right.source_byte
        assert not (source_follows and left.target_byte + left.num_bytes == right.target_byte)


def test_neighbours_on_both_sides_are_one_copy(sender: KVSender, receiver: KVReceiver, spy: SpyDriver) -> None:
    handle = sender.offer("t", [4, 5, 6, 9, 10], num_tokens=80)
    receiver.pull(handle, empty_pool(), [0, 1, 2, 3, 5])
    size = BLOCK_BYTES
    assert spy.runs == [
        CopyRun(4 * size, 0, 3 * size),
        CopyRun(9 * size, 3 * size, size),
        CopyRun(10 * size, 5 * size, size),
    ]


def test_the_buffer_is_the_page_aligned_writable_pool(sender: KVSender) -> None:
    assert sender.buffer.dtype == torch.uint8
    assert sender.buffer.shape == (NUM_BLOCKS * BLOCK_BYTES,)
    assert sender.buffer.data_ptr() % 4096 == 0


def test_a_pool_of_any_dtype_and_shape_can_be_pulled_into(shm_directory: Path) -> None:
    driver = ShmDriver(shm_directory)
    shape = (6, 2, 2, 3, 4, 8)  # [num_blocks, num_layers, 2, num_kv_heads, block_size, head_dim]
    block_bytes = 2 * 2 * 3 * 4 * 8 * 2
    with KVSender.create("p", 6, block_bytes, "layout", 1, driver) as sender:
        source = sender.buffer.view(torch.bfloat16).view(shape)
        source.copy_(torch.randn(shape))
        receiver = KVReceiver("layout", block_bytes, driver)
        pool = torch.zeros(shape, dtype=torch.bfloat16)
        receiver.pull(sender.offer("t", [5, 1], 8), pool, [2, 0])
        assert torch.equal(pool[2], source[5]) and torch.equal(pool[0], source[1])
        receiver.close()


def test_targets_that_cannot_be_written_are_our_bug(sender: KVSender, receiver: KVReceiver) -> None:
    handle = sender.offer("t", [0, 1], 32)
    for targets in ([0, NUM_BLOCKS], [-1, 0], [3, 3]):
        with pytest.raises(ValueError, match="pull into"):
            receiver.pull(handle, empty_pool(), targets)
    with pytest.raises(ValueError, match="contiguous"):
        receiver.pull(handle, empty_pool().t(), [0, 1])
    with pytest.raises(ValueError, match="pull into"):
        receiver.pull(handle, torch.zeros(2 * BLOCK_BYTES + 1, dtype=torch.uint8), [0, 1])


# What a handle may say wrongly, and the word in the reason that tells it.
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"layout_hash": "other"}, "layout"),
    ({"pool_epoch": 12345}, "epoch"),
    ({"pool_epoch": 0}, "epoch"),
    ({"generation": 2}, "generation"),
    ({"generation": 3}, "generation"),
    ({"generation": -1}, "generation"),
    ({"slot": 1}, "generation"),
    ({"slot": 4}, "slot 4 of 4"),
    ({"slot": -1}, "slot -1"),
    ({"slot": 2**63}, "slot"),
    ({"block_ids": [0, NUM_BLOCKS]}, f"block {NUM_BLOCKS} of a pool"),
    ({"block_ids": [-1, 0]}, "block -1"),
    ({"block_ids": [2**64, 0]}, "block"),
    ({"block_ids": [1, 0]}, "not what was offered"),
    ({"block_ids": [0]}, "1 blocks, 2 were expected"),
    ({"block_ids": [0, 1, 2]}, "3 blocks"),
    ({"block_ids": []}, "0 blocks"),
    ({"num_tokens": 31}, "not what was offered"),
    ({"transfer_id": "other"}, "not what was offered"),
    ({"worker_id": "other"}, "not what was offered"),
    ({"pool": "../../etc/passwd"}, "no name"),
    ({"pool": "pdq-prefill-1-0000000000000000"}, "gone"),
]


@pytest.mark.parametrize(("change", "reason"), WRONG)
def test_a_handle_that_does_not_fit_is_refused_before_the_first_byte(
    change: dict[str, Any], reason: str, sender: KVSender, receiver: KVReceiver, spy: SpyDriver
) -> None:
    handle = sender.offer("t", [0, 1], 32)
    pool = empty_pool()
    with pytest.raises(KVTransferFailed, match=reason):
        receiver.pull(msgspec.structs.replace(handle, **change), pool, [0, 1])
    assert spy.runs == [] and not pool.any()
    receiver.pull(handle, pool, [0, 1])  # the true one still works


def test_a_head_of_another_layout_is_refused_whatever_the_handle_says(sender: KVSender, spy: SpyDriver) -> None:
    handle = sender.offer("t", [0], 16)
    other_layout = KVReceiver("other", BLOCK_BYTES, spy)
    with pytest.raises(KVTransferFailed, match="another KV layout"):
        other_layout.pull(msgspec.structs.replace(handle, layout_hash="other"), empty_pool(), [0])
    other_size = KVReceiver("layout", BLOCK_BYTES + 1, spy)
    with pytest.raises(KVTransferFailed, match="another KV layout"):
        other_size.pull(handle, torch.zeros(BLOCK_BYTES + 1, dtype=torch.uint8), [0])
    assert other_layout.num_mappings == other_size.num_mappings == 0


wild_integers = st.one_of(st.integers(-2, NUM_BLOCKS + 2), st.integers(), st.sampled_from([2**31, 2**32, 2**63, 2**64]))
wild_changes = st.fixed_dictionaries(
    {},
    optional={
        "transfer_id": st.text(),
        "worker_id": st.text(),
        "pool": st.text() | st.from_regex(r"pdq-[a-z./-]{1,20}-[0-9a-f]{16}", fullmatch=True),
        "pool_epoch": wild_integers,
        "slot": wild_integers,
        "generation": wild_integers,
        "layout_hash": st.text(),
        "num_tokens": wild_integers,
        "block_ids": st.lists(wild_integers, max_size=4),
    },
)


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(change=wild_changes, offered=st.lists(st.integers(0, NUM_BLOCKS - 1), min_size=1, max_size=4, unique=True))
@example(change={"block_ids": [2**64 - 1]}, offered=[0])
def test_whatever_a_handle_says_the_pull_is_right_or_refused(
    sender: KVSender, receiver: KVReceiver, change: dict[str, Any], offered: list[int]
) -> None:
    handle = sender.offer("t", offered, 16)
    try:
        wild = msgspec.structs.replace(handle, **change)
        pool = empty_pool()
        targets = list(range(len(wild.block_ids)))
        try:
            receiver.pull(wild, pool, targets)
        except KVTransferFailed:
            assert wild != handle
        else:
            assert wild == handle
            assert torch.equal(pool[targets], blocks_of(sender)[offered])
    finally:
        sender.withdraw("t")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 10_000), value=st.integers(0, 255))
def test_a_flipped_byte_of_a_handle_on_the_wire_is_noticed(
    sender: KVSender, receiver: KVReceiver, position: int, value: int
) -> None:
    handle = sender.offer("t", [3, 1], 32)
    try:
        wire = bytearray(encode(DecodeJob("r", 0, 1, handle)))
        wire[position % len(wire)] = value
        try:
            forged = decode(bytes(wire), DecodeJob).kv_handle
            receiver.pull(forged, empty_pool(), [0, 1])
        except (WireError, KVTransferFailed):
            return
        assert forged == handle
    finally:
        sender.withdraw("t")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2**64 - 1)), min_size=1, max_size=4))
def test_whatever_the_head_of_a_pool_says_nothing_outside_is_read(spy: SpyDriver, words: list[tuple[int, int]]) -> None:
    receiver = KVReceiver("layout", BLOCK_BYTES, spy)
    with KVSender.create("forger", 3, BLOCK_BYTES, "layout", 2, spy) as sender:
        sender.buffer.fill_(5)
        handle = sender.offer("t", [2], 16)
        view = memoryview(sender._segment.mapping)[:512].cast("Q")
        for word, value in words:
            view[word] = value
        wild = msgspec.structs.replace(handle, pool_epoch=view[2])
        pool = empty_pool()
        try:
            receiver.pull(wild, pool, [0])
        except KVTransferFailed:
            assert not pool.any()
        else:
            assert torch.equal(pool[0], sender.buffer[2 * BLOCK_BYTES :])
    receiver.close()


# --- offers ---------------------------------------------------------------------------------------------------------


def test_a_withdrawn_offer_is_refused_and_a_reused_slot_has_another_generation(spy: SpyDriver) -> None:
    receiver = KVReceiver("layout", BLOCK_BYTES, spy)
    with KVSender.create("p", NUM_BLOCKS, BLOCK_BYTES, "layout", 1, spy) as sender:
        old = sender.offer("old", [0], 16)
        assert sender.withdraw("old")
        with pytest.raises(KVTransferFailed, match="no longer offered"):
            receiver.pull(old, empty_pool(), [0])
        new = sender.offer("new", [0], 16)
        assert (new.slot, new.generation > old.generation) == (old.slot, True)
        with pytest.raises(KVTransferFailed, match="no longer offered"):
            receiver.pull(old, empty_pool(), [0])
        receiver.pull(new, empty_pool(), [0])
    receiver.close()


def test_withdrawing_twice_or_the_unknown_is_harmless(sender: KVSender, receiver: KVReceiver) -> None:
    handle = sender.offer("a", [0], 16)
    kept = sender.offer("b", [1], 16)
    assert sender.withdraw("a")
    again = sender.offer("c", [2], 16)
    assert not sender.withdraw("a")
    assert not sender.withdraw("never")
    assert (sender.num_offers, sender.num_free_offers) == (2, 2)
    for valid in (kept, again):
        receiver.pull(valid, empty_pool(), [0])
    with pytest.raises(KVTransferFailed):
        receiver.pull(handle, empty_pool(), [0])


def test_every_slot_can_be_open_and_no_more(sender: KVSender) -> None:
    handles = [sender.offer(f"t{index}", [index], 16) for index in range(4)]
    assert sorted(handle.slot for handle in handles) == [0, 1, 2, 3]
    with pytest.raises(KVTransferFailed, match="all 4 offers"):
        sender.offer("one more", [0], 16)
    sender.withdraw("t2")
    assert sender.offer("one more", [0], 16).slot == handles[2].slot


@pytest.mark.parametrize("block_ids", [[], [NUM_BLOCKS], [-1], [0, 99]])
def test_offering_what_is_no_block_is_our_bug(block_ids: list[int], sender: KVSender) -> None:
    with pytest.raises(ValueError, match="blocks"):
        sender.offer("t", block_ids, 16)
    assert sender.num_free_offers == 4


def test_one_transfer_id_is_one_offer(sender: KVSender) -> None:
    sender.offer("t", [0], 16)
    with pytest.raises(ValueError, match="already"):
        sender.offer("t", [1], 16)


def test_a_handle_is_small(sender: KVSender) -> None:
    handle = sender.offer("0123456789abcdef" * 2, [0], 16)
    assert len(encode(DecodeJob("r", 0, 1, msgspec.structs.replace(handle, block_ids=[])))) <= 1024


def test_offers_from_many_threads_never_share_a_slot(spy: SpyDriver) -> None:
    with KVSender.create("p", NUM_BLOCKS, BLOCK_BYTES, "layout", 64, spy) as sender:
        handles: list[KVHandle] = []

        def work(thread: int) -> None:
            for index in range(200):
                handles.append(sender.offer(f"{thread}-{index}", [0], 16))
                sender.withdraw(f"{thread}-{index}")

        threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({(handle.slot, handle.generation) for handle in handles}) == 800
        assert (sender.num_offers, sender.num_free_offers) == (0, 64)


# --- races, each forced at the very place by the driver -------------------------------------------------------------


@pytest.mark.parametrize("moment", ["before_copy", "after_copy"])
def test_a_withdraw_during_the_copy_is_noticed(
    moment: str, sender: KVSender, receiver: KVReceiver, spy: SpyDriver
) -> None:
    handle = sender.offer("t", [0, 1], 32)
    setattr(spy, moment, lambda: sender.withdraw("t"))
    with pytest.raises(KVTransferFailed, match="withdrawn while it was pulled"):
        receiver.pull(handle, empty_pool(), [0, 1])
    assert len(spy.runs) == 1, "it was refused before the copy, so the race was not there"


def test_a_reuse_of_slot_and_blocks_during_the_copy_is_noticed(spy: SpyDriver) -> None:
    receiver = KVReceiver("layout", BLOCK_BYTES, spy)
    with KVSender.create("p", NUM_BLOCKS, BLOCK_BYTES, "layout", 1, spy) as sender:
        handle = sender.offer("t", [0, 1], 32)

        def reuse() -> None:
            sender.withdraw("t")
            sender.buffer.fill_(9)
            assert sender.offer("t", [0, 1], 32).slot == handle.slot  # the same again, but for the generation

        spy.before_copy = reuse
        with pytest.raises(KVTransferFailed, match="withdrawn while it was pulled"):
            receiver.pull(handle, empty_pool(), [0, 1])
    receiver.close()


def test_other_offers_come_and_go_during_a_pull(sender: KVSender, receiver: KVReceiver, spy: SpyDriver) -> None:
    handle = sender.offer("t", [0, 1], 32)
    sender.offer("other", [2], 16)

    def others() -> None:
        sender.withdraw("other")
        sender.offer("another", [3], 16)

    spy.before_copy = others
    pool = empty_pool()
    receiver.pull(handle, pool, [5, 6])
    assert torch.equal(pool[5:7], blocks_of(sender)[0:2])


def test_the_owner_closing_during_a_pull_is_noticed(spy: SpyDriver) -> None:
    receiver = KVReceiver("layout", BLOCK_BYTES, spy)
    sender = KVSender.create("p", NUM_BLOCKS, BLOCK_BYTES, "layout", 1, spy)
    handle = sender.offer("t", [0], 16)
    spy.before_copy = sender.close
    with pytest.raises(KVTransferFailed, match="withdrawn while it was pulled"):
        receiver.pull(handle, empty_pool(), [0])
    receiver.close()


def test_the_copy_leaves_the_gil_to_others(shm_directory: Path) -> None:
    driver = ShmDriver(shm_directory)
    num_bytes = 32 << 20
    pool = driver.alloc("p", 0, num_bytes)
    into = torch.zeros(num_bytes, dtype=torch.uint8)
    is_over = threading.Event()
    switch_interval_s = sys.getswitchinterval()
    copying = False
    seen_copying = 0

    def look() -> None:
        nonlocal seen_copying
        while not is_over.is_set():
            seen_copying += copying
            time.sleep(0)

    looker = threading.Thread(target=look)
    try:
        looker.start()
        sys.setswitchinterval(1000)  # from now on a thread runs only when the other one lets go of its own accord
        deadline = time.monotonic() + 20
        while not seen_copying and time.monotonic() < deadline:
            copying = True
            driver.copy(pool, 0, into, BlockCopies(whole_blocks(num_bytes), [0], [0]))
            copying = False
    finally:
        is_over.set()
        sys.setswitchinterval(switch_interval_s)
        looker.join()
        driver.free(pool)
    assert seen_copying


# --- mappings -------------------------------------------------------------------------------------------------------


def mapped_here(name: str) -> int:
    return Path("/proc/self/maps").read_text().count(name)


def test_a_pool_is_mapped_once_and_unmapped_at_close(sender: KVSender, spy: SpyDriver) -> None:
    receiver = KVReceiver("layout", BLOCK_BYTES, spy)
    own = mapped_here(sender.pool)
    for index in range(3):
        receiver.pull(sender.offer(f"t{index}", [index], 16), empty_pool(), [0])
    assert (receiver.num_mappings, mapped_here(sender.pool)) == (1, own + 1)
    receiver.close()
    assert (receiver.num_mappings, mapped_here(sender.pool)) == (0, own)
    receiver.pull(sender.offer("t3", [3], 16), empty_pool(), [0])  # maps again
    receiver.close()


def test_mappings_are_bounded_and_the_oldest_use_goes_first(spy: SpyDriver) -> None:
    receiver = KVReceiver("layout", BLOCK_BYTES, spy, max_mappings=2)
    senders = [KVSender.create(f"p{index}", 2, BLOCK_BYTES, "layout", 2, spy) for index in range(3)]
    handles = [sender.offer("t", [0], 16) for sender in senders]
    for index in (0, 1, 0, 2):
        receiver.pull(handles[index], empty_pool(), [0])
    assert receiver.num_mappings == 2
    for sender in senders:
        sender.close()
    assert [mapped_here(sender.pool) for sender in senders] == [2, 1, 2], "the owner's own mapping, and ours"
    receiver.close()


def test_prune_drops_dead_owners_only(sender: KVSender, receiver: KVReceiver, spy: SpyDriver) -> None:
    dead = KVSender.create("dead", NUM_BLOCKS, BLOCK_BYTES, "layout", 1, spy)
    dead_handle = dead.offer("t", [0], 16)
    for handle in (dead_handle, sender.offer("t", [0], 16)):
        receiver.pull(handle, empty_pool(), [0])
    assert receiver.prune() == 0
    dead._segment.close()  # as a SIGKILL does it: the lock goes, name and generations stay
    assert receiver.prune() == 1
    assert receiver.num_mappings == 1
    receiver.pull(dead_handle, empty_pool(), [0])  # its name is still there: mapped again
    assert spy.sweep() == [dead.pool]
    assert receiver.prune() == 1
    with pytest.raises(KVTransferFailed, match="gone"):
        receiver.pull(dead_handle, empty_pool(), [0])


def test_a_mapping_that_is_dropped_during_a_pull_serves_it_to_the_end(
    sender: KVSender, receiver: KVReceiver, spy: SpyDriver
) -> None:
    own, num_open = mapped_here(sender.pool), len(os.listdir("/proc/self/fd"))
    handle = sender.offer("t", [0, 1], 32)
    spy.before_copy = receiver.close
    pool = empty_pool()
    receiver.pull(handle, pool, [0, 1])
    assert torch.equal(pool[:2], blocks_of(sender)[:2])
    assert (receiver.num_mappings, mapped_here(sender.pool)) == (0, own)
    assert len(os.listdir("/proc/self/fd")) == num_open


def test_pulls_of_two_threads_overlap(sender: KVSender, receiver: KVReceiver, spy: SpyDriver) -> None:
    meeting = threading.Barrier(2, timeout=20)
    spy.before_copy = lambda: (meeting.wait(), None)[1]
    handles = [sender.offer(f"t{index}", [index], 16) for index in range(2)]
    pools = [empty_pool(), empty_pool()]
    threads = [
        threading.Thread(target=receiver.pull, args=(handle, pool, [0]))
        for handle, pool in zip(handles, pools, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, pool in enumerate(pools):
        assert torch.equal(pool[0], blocks_of(sender)[index])


@pytest.mark.parametrize("num_bytes_less", [1, BLOCK_BYTES, NUM_BLOCKS * BLOCK_BYTES, NUM_BLOCKS * BLOCK_BYTES + 4096])
@pytest.mark.parametrize("is_mapped", [False, True])
def test_a_segment_that_was_cut_short_is_refused(
    num_bytes_less: int, is_mapped: bool, shm_directory: Path, spy: SpyDriver, receiver: KVReceiver
) -> None:
    with KVSender.create("p", NUM_BLOCKS, BLOCK_BYTES, "layout", 4, spy) as sender:
        path = shm_directory / sender.pool
        handle = sender.offer("t", [0], 16)
        if is_mapped:
            receiver.pull(handle, empty_pool(), [0])
        whole = path.read_bytes()
        with path.open("r+b") as file:
            file.truncate(len(whole) - num_bytes_less)
        with pytest.raises(KVTransferFailed):
            receiver.pull(handle, empty_pool(), [0])
        with path.open("r+b") as file:
            file.write(whole)  # for the sender's own close


# --- closing --------------------------------------------------------------------------------------------------------


def test_after_close_nothing_is_offered_and_the_buffer_still_lives(spy: SpyDriver, shm_directory: Path) -> None:
    sender = KVSender.create("p", NUM_BLOCKS, BLOCK_BYTES, "layout", 4, spy)
    receiver = KVReceiver("layout", BLOCK_BYTES, spy)
    handle = sender.offer("t", [0], 16)
    receiver.pull(handle, empty_pool(), [0])
    sender.close()
    sender.close()
    assert list(shm_directory.iterdir()) == []
    assert not sender.withdraw("t")
    with pytest.raises(KVTransferFailed, match="closed"):
        sender.offer("u", [0], 16)
    with pytest.raises(KVTransferFailed, match="no longer offered"):
        receiver.pull(handle, empty_pool(), [0])  # mapped still, withdrawn by the close
    sender.buffer.fill_(3)
    buffer, name = sender.buffer, sender.pool
    receiver.close()
    del sender
    assert mapped_here(name) == 1 and int(buffer[-1]) == 3
    del buffer
    assert mapped_here(name) == 0, "the memory is given back with the last tensor over it"
    with pytest.raises(KVTransferFailed, match="gone"):
        receiver.pull(handle, empty_pool(), [0])


def test_a_pool_of_nothing_is_our_bug_and_one_too_large_a_device_error(spy: SpyDriver) -> None:
    with pytest.raises(ValueError, match="0 blocks"):
        KVSender.create("p", 0, BLOCK_BYTES, "layout", 4, spy)
    with pytest.raises(DeviceError, match="PDQ_KV__POOL_BYTES"):
        KVSender.create("p", 1 << 40, 1 << 18, "layout", 4, spy)
