"""The sums by which a receiver knows a block: the formula, its twin in C++, and what they notice."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kernels import cpu_build
from kernels.block_sums import CpuBlockSums, block_sums


@pytest.fixture(scope="module")
def compiled() -> CpuBlockSums:
    library = cpu_build.load()
    if library is None:
        pytest.skip("no C++ kernels here")
    return CpuBlockSums(library)


def by_the_formula(data: bytes) -> tuple[int, int]:
    data += bytes(-len(data) % 32)
    words = [int.from_bytes(data[place : place + 4], "little") for place in range(0, len(data), 4)]
    weighted = sum((len(words) - place) * word for place, word in enumerate(words))
    return sum(words) % 2**64, weighted % 2**64


@settings(max_examples=100, deadline=None)
@given(data=st.binary(min_size=1, max_size=300))
@example(data=b"\xff" * 4096)
@example(data=b"\xff")
def test_both_are_the_formula(compiled: CpuBlockSums, data: bytes) -> None:
    memory = np.frombuffer(b"?" * len(data) + data + b"?", dtype=np.uint8)  # blocks begin anywhere
    wanted = by_the_formula(data)
    assert tuple(compiled.sums(memory, [1], len(data))[0].tolist()) == wanted
    assert tuple(block_sums(torch.tensor(memory), [1], len(data))[0].tolist()) == wanted


def test_a_copy_sums_what_it_writes_and_writes_nothing_else(compiled: CpuBlockSums) -> None:
    num_bytes, sources, targets = 5003, [3, 0, 1], [0, 6, 2]
    source = np.random.default_rng(3).integers(0, 256, 8 * num_bytes, dtype=np.uint8)
    source.flags.writeable = False  # as another process's memory is
    target = np.full(8 * num_bytes, 7, dtype=np.uint8)
    sums = compiled.copy(source, sources, target, targets, num_bytes)
    wanted = np.full((8, num_bytes), 7, dtype=np.uint8)
    wanted[targets] = source.reshape(8, num_bytes)[sources]
    assert np.array_equal(target.reshape(8, num_bytes), wanted)
    assert np.array_equal(sums, block_sums(torch.tensor(source), sources, num_bytes))


@pytest.mark.parametrize("block_id", [-1, 4, 1 << 40])
def test_no_block_is_outside_the_memory(compiled: CpuBlockSums, block_id: int) -> None:
    memory = np.zeros(4 * 16 + 15, dtype=np.uint8)
    for sources, targets in (([block_id], [0]), ([0], [block_id])):
        with pytest.raises(ValueError, match="in a memory of 4"):
            compiled.copy(memory, sources, memory.copy(), targets, 16)


@settings(max_examples=300, deadline=None)
@given(
    words=st.lists(st.integers(0, 2**32 - 1), min_size=2, max_size=40),
    changes=st.dictionaries(st.integers(0, 39), st.integers(0, 2**32 - 1), min_size=1, max_size=2),
)
@example(words=[0, 0], changes={0: 2**31, 1: 2**31})  # the sums of whole words, modulo 2^32, would be the same
def test_one_or_two_wrong_words_are_always_noticed(words: list[int], changes: dict[int, int]) -> None:
    changed = list(words)
    for place, word in changes.items():
        changed[place % len(words)] = word
    before, after = (
        block_sums(torch.tensor(np.array(some, np.uint32).view(np.uint8)), [0], 4 * len(words))
        for some in (words, changed)
    )
    assert np.array_equal(before, after) == (words == changed)
