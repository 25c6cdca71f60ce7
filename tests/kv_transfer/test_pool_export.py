import mmap
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from errors import KVTransferFailed
from kv_transfer.pool_export import PoolHead, PoolShape, layout_digest, offer_digest

SHAPE = PoolShape(epoch=77, block_bytes=5000, num_blocks=3, num_slots=10, layout_digest=layout_digest("layout"))


def head_of(shape: PoolShape) -> tuple[mmap.mmap, PoolHead]:
    mapping = mmap.mmap(-1, shape.head_bytes + shape.data_bytes)
    return mapping, PoolHead.write(mapping, shape)


@pytest.mark.parametrize("num_slots", [1, 55, 56, 57, 4096])  # 56 slots end exactly on the first page
def test_the_blocks_begin_on_the_first_page_behind_the_slots(num_slots: int) -> None:
    shape = PoolShape(1, 8, 1, num_slots, layout_digest(""))
    assert shape.head_bytes % mmap.PAGESIZE == 0
    assert 0 <= shape.head_bytes - (64 + 8 * num_slots) * 8 < mmap.PAGESIZE


def test_what_is_written_is_read() -> None:
    mapping, _ = head_of(SHAPE)
    assert PoolHead.read(mapping).shape == SHAPE


def test_a_generation_is_an_aligned_word_of_its_slot_alone() -> None:
    mapping, head = head_of(SHAPE)
    reader = PoolHead.read(mapping)
    before = bytes(mapping)
    assert head.open_slot(3, digest=0xABCDEF) == 1
    assert struct.unpack_from("=QQ", mapping, (64 + 3 * 8) * 8) == (1, 0xABCDEF)
    assert [reader.generation(slot) for slot in range(10)] == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    assert reader.digest(3) == 0xABCDEF
    head.close_slot(3)
    assert reader.generation(3) == 2
    assert head.open_slot(3, digest=1) == 3, "a reused slot has another generation"
    changed = [index for index, (old, new) in enumerate(zip(before, bytes(mapping), strict=True)) if old != new]
    assert {index // 64 for index in changed} == {8 + 3}


def test_opening_twice_or_closing_twice_is_our_bug() -> None:
    _, head = head_of(SHAPE)
    with pytest.raises(AssertionError, match="free"):
        head.close_slot(0)
    head.open_slot(0, 1)
    with pytest.raises(AssertionError, match="taken"):
        head.open_slot(0, 1)


@pytest.mark.parametrize(
    ("word", "value", "reason"),
    [
        (0, 0, "no KV pool"),
        (1, 3, "version 3"),
        (3, 8192, "contradicts"),
        (6, 2**60, "contradicts"),
        (6, 11_000, "contradicts"),
        (7, 640, "contradicts"),  # a checksum table, which this version does not know
    ],
)
def test_a_head_that_cannot_be_is_refused(word: int, value: int, reason: str) -> None:
    mapping, _ = head_of(SHAPE)
    struct.pack_into("=Q", mapping, word * 8, value)
    with pytest.raises(KVTransferFailed, match=reason):
        PoolHead.read(mapping)


@pytest.mark.parametrize("num_bytes", [1, 511, 512, 4095])
def test_a_head_that_is_cut_short_is_refused(num_bytes: int) -> None:
    whole, _ = head_of(SHAPE)
    mapping = mmap.mmap(-1, num_bytes)
    mapping[:] = whole[:num_bytes]
    with pytest.raises(KVTransferFailed):
        PoolHead.read(mapping)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 63), st.integers(0, 2**64 - 1)), min_size=1, max_size=6))
def test_whatever_the_head_says_its_slots_lie_inside_the_mapping(words: list[tuple[int, int]]) -> None:
    mapping, _ = head_of(SHAPE)
    for word, value in words:
        struct.pack_into("=Q", mapping, word * 8, value)
    try:
        head = PoolHead.read(mapping)
    except KVTransferFailed:
        return
    assert head.shape.head_bytes <= len(mapping)
    head.generation(head.shape.num_slots - 1)
    head.digest(head.shape.num_slots - 1)


def test_the_digest_tells_every_part_of_an_offer() -> None:
    offers = [
        ("w", "t", 32, [1, 2]),
        ("w", "t", 32, [2, 1]),
        ("w", "t", 32, [1]),
        ("w", "t", 32, [1, 2, 3]),
        ("w", "t", 31, [1, 2]),
        ("w", "u", 32, [1, 2]),
        ("v", "t", 32, [1, 2]),
        ("w', 't", "", 32, [1, 2]),
        ("w", "\ud800", 32, [1, 2]),
    ]
    assert len({offer_digest(*offer) for offer in offers}) == len(offers)
    assert offer_digest(*offers[0]) == offer_digest("w", "t", 32, (1, 2))
