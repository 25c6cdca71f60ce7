"""The head of an exported pool: what its owner says about it, and one generation per offer.

The head is written by the owner alone and read by anybody. All fields are 8-byte words in the host's byte order:

    word     0  magic                   1  version
             2  epoch                   3  head_bytes: where the first block begins, a multiple of the page
             4  block_bytes             5  num_blocks
             6  num_slots               7  zero
          8-11  sha256 of the layout hash
         12-15  zero
         16-47  memory handle: 256 bytes of the driver's own, zero under shared memory
         48-63  zero
    64 + 8*s    generation of slot s: odd while an offer stands, even while none does
    64 + 8*s+1  digest of what is offered in slot s (worker and transfer id, tokens, ranks, epoch, block ids)
        64 + 8*s+2  generation of the offer whose checksum follows; any other while there is none
    64 + 8*s+3  checksum of what is offered in slot s (checksum.py)
     + 4-7  zero: nobody's cache line but the slot's

Who says so (seal.py) stands in the handle, and whether there will be a checksum: it comes after the offer.

Ordering. A word is stored and loaded by one aligned 8-byte move, never torn. The owner fills blocks, writes the digest,
fences, makes the generation odd; to withdraw it makes it even, fences, and only then lets the blocks be reused. The
reader loads the generation, fences, copies, fences, loads it again: equal and odd means that no byte was reused in
between. On x86 stores and loads of this kind stay in order anyway; on ARM the fences are needed.

This file knows bytes and checks them; it knows no driver, no offer table and no clock.
"""

import hashlib
import mmap
import threading
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from errors import KVTransferFailed

VERSION = 2
_MAGIC = int.from_bytes(b"pdqkvpol", "little")
_HEADER_WORDS = 64
_SLOT_WORDS = 8
_WORD_BYTES = 8
MEMORY_HANDLE_PLACE = 16 * _WORD_BYTES  # where a driver may write 256 bytes of its own
_FENCE = threading.Lock()


def fence() -> None:
    """No load or store moves across. Two lock cycles: what is before stays above the first release, what is after
    stays below the second acquire."""
    for _ in range(2):
        with _FENCE:
            pass


def layout_digest(layout_hash: str) -> bytes:
    """The layout hash, whatever its length, as the 32 bytes that the head keeps."""
    return hashlib.sha256(layout_hash.encode("utf-8", "backslashreplace")).digest()


def offer_digest(
    worker_id: str,
    transfer_id: str,
    num_tokens: int,
    block_ids: Sequence[int],
    num_ranks: int = 1,
    pool_epoch: int = 0,
) -> int:
    """What an offer says, in 64 bits: a handle whose block ids were swapped or cut does not match its slot.

    With the epoch, so that a reader who refreshes nothing but the slot sees that the pool is another one.
    """
    # repr: unambiguous where one field ends, and plain text whatever a forged field holds.
    digest = hashlib.blake2b(repr((worker_id, transfer_id, num_tokens, num_ranks, pool_epoch)).encode(), digest_size=8)
    digest.update(array("Q", block_ids).tobytes())
    return int.from_bytes(digest.digest(), "little")


@dataclass(frozen=True, slots=True)
class PoolShape:
    """The constants of an exported pool."""

    epoch: int  # 1 .. 2**63-1
    block_bytes: int
    num_blocks: int
    num_slots: int
    layout_digest: bytes  # 32 bytes

    @property
    def head_bytes(self) -> int:
        """Size of the head, in whole pages, so that the first block is page-aligned."""
        num_bytes = (_HEADER_WORDS + _SLOT_WORDS * self.num_slots) * _WORD_BYTES
        return -(-num_bytes // mmap.PAGESIZE) * mmap.PAGESIZE

    @property
    def data_bytes(self) -> int:
        """Size of all blocks."""
        return self.block_bytes * self.num_blocks


class PoolHead:
    """The head over the first bytes of a mapping; only the owner's can be written."""

    def __init__(self, shape: PoolShape, words: memoryview) -> None:
        self.shape = shape
        self._words = words

    @classmethod
    def write(cls, mapping: mmap.mmap, shape: PoolShape) -> "PoolHead":
        """The owner writes the head of a fresh, zeroed pool."""
        view = memoryview(mapping)[: shape.head_bytes]
        view[8 * _WORD_BYTES : 12 * _WORD_BYTES] = shape.layout_digest
        words = view.cast("Q")
        for index, value in enumerate(
            (VERSION, shape.epoch, shape.head_bytes, shape.block_bytes, shape.num_blocks, shape.num_slots, 0), start=1
        ):
            words[index] = value
        fence()
        words[0] = _MAGIC  # last: whoever sees it sees a whole header
        return cls(shape, words)

    @classmethod
    def read(cls, mapping: mmap.mmap | memoryview) -> "PoolHead":
        """The head of somebody's pool, mapped or copied; believes nothing. Raises KVTransferFailed."""
        if len(mapping) < _HEADER_WORDS * _WORD_BYTES:
            raise KVTransferFailed(f"the pool is cut short: {len(mapping)} bytes")
        header = memoryview(mapping)[: _HEADER_WORDS * _WORD_BYTES]
        words = header.cast("Q")
        if words[0] != _MAGIC:
            raise KVTransferFailed("the segment is no KV pool")
        if words[1] != VERSION:
            raise KVTransferFailed(f"the pool's head has version {words[1]}, this process knows {VERSION}")
        shape = PoolShape(
            epoch=words[2],
            block_bytes=words[4],
            num_blocks=words[5],
            num_slots=words[6],
            layout_digest=bytes(header[8 * _WORD_BYTES : 12 * _WORD_BYTES]),
        )
        if words[3] != shape.head_bytes or words[7] != 0 or len(mapping) < shape.head_bytes:
            raise KVTransferFailed(f"the pool's head contradicts itself: {words[3]} bytes for {shape.num_slots} slots")
        return cls(shape, memoryview(mapping)[: shape.head_bytes].cast("Q"))

    @staticmethod
    def slot_place(slot: int) -> tuple[int, int]:
        """Byte offset and size of what the head says about a slot."""
        return (_HEADER_WORDS + slot * _SLOT_WORDS) * _WORD_BYTES, _SLOT_WORDS * _WORD_BYTES

    def epoch(self) -> int:
        """The epoch that stands in the head now."""
        return self._words[2]

    def generation(self, slot: int) -> int:
        """The slot's generation now; odd: an offer stands."""
        return self._words[_HEADER_WORDS + slot * _SLOT_WORDS]

    def has_offers(self) -> bool:
        """Whether any offer stands now. Looks at every slot, 7 us for 4096."""
        words = np.frombuffer(self._words, dtype=np.uint64)
        generations = words[_HEADER_WORDS : _HEADER_WORDS + _SLOT_WORDS * self.shape.num_slots : _SLOT_WORDS]
        return bool((generations & np.uint64(1)).any())

    def digest(self, slot: int) -> int:
        """The digest of what stands in the slot."""
        return self._words[_HEADER_WORDS + slot * _SLOT_WORDS + 1]

    def checksum(self, slot: int, generation: int) -> int | None:
        """Of the offer that stands, or stood, in the slot under this generation; None while it is not there."""
        first = _HEADER_WORDS + slot * _SLOT_WORDS
        if self._words[first + 2] != generation:
            return None
        fence()
        return self._words[first + 3]

    def put_checksum(self, slot: int, checksum: int) -> None:
        """The owner has summed the blocks of the offer that stands in the slot."""
        first = _HEADER_WORDS + slot * _SLOT_WORDS
        assert self._words[first] % 2 == 1, f"slot {slot} is free"
        self._words[first + 3] = checksum
        fence()
        self._words[first + 2] = self._words[first]

    def open_slot(self, slot: int, digest: int) -> int:
        """The owner's blocks are filled: let an offer of them stand. The new, odd generation."""
        first = _HEADER_WORDS + slot * _SLOT_WORDS
        assert self._words[first] % 2 == 0, f"slot {slot} is taken"
        self._words[first + 1] = digest
        fence()
        self._words[first] += 1
        return self._words[first]

    def close_slot(self, slot: int) -> None:
        """The offer no longer stands; when this returns its blocks may be written again."""
        first = _HEADER_WORDS + slot * _SLOT_WORDS
        assert self._words[first] % 2 == 1, f"slot {slot} is free"
        self._words[first] += 1
        fence()
