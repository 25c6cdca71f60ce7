"""The plain block copies against loops over single elements, and the plan of a re-shard against its purpose."""

from itertools import product

import pytest
import torch
from torch import Tensor

from kernels.block_copy import copy_blocks, reshard_blocks, reshard_pieces

NUM_LAYERS, HEAD_DIM = 2, 3


def random_bytes(*shape: int, seed: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def random_pool(num_blocks: int, num_kv_heads: int, block_size: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Any bits, NaNs among them. [num_blocks, num_layers, 2, num_kv_heads, block_size, head_dim]"""
    shape = num_blocks, NUM_LAYERS, 2, num_kv_heads, block_size, HEAD_DIM * dtype.itemsize
    return random_bytes(*shape, seed=seed).view(dtype)


def bits(pool: Tensor) -> Tensor:
    return pool.contiguous().view(torch.uint8)


@pytest.mark.parametrize("ids_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("ids", [([], []), ([5], [0]), ([4, 4, 0, 2], [1, 0, 3, 6])], ids=str)
def test_copy_blocks(ids: tuple[list[int], list[int]], ids_dtype: torch.dtype) -> None:
    source, target = random_bytes(6, 48, seed=1), random_bytes(7, 48, seed=2)
    wanted = target.clone()
    for source_id, target_id in zip(*ids, strict=True):
        for byte in range(48):
            wanted[target_id, byte] = source[source_id, byte]
    copy_blocks(source, torch.tensor(ids[0], dtype=ids_dtype), target, torch.tensor(ids[1], dtype=ids_dtype))
    assert torch.equal(target, wanted)


def test_ids_are_pairs() -> None:
    pool = random_bytes(4, 16, seed=1)
    with pytest.raises(ValueError):
        copy_blocks(pool, torch.tensor([0, 1]), pool.clone(), torch.tensor([0]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("num_tokens", [0, 1, 16, 37, 64])
@pytest.mark.parametrize("sizes", [(16, 16), (16, 32), (32, 16), (32, 32)], ids=str)
def test_reshard_blocks(sizes: tuple[int, int], num_tokens: int, dtype: torch.dtype) -> None:
    source_size, target_size = sizes
    source = random_pool(6, 4, source_size, dtype, seed=1)
    target = random_pool(6, 3, target_size, dtype, seed=2)
    source_table, target_table = [4, 0, 5, 2], [1, 3, 0, 5]
    wanted = bits(target).clone()
    for token, layer, kv, head in product(range(num_tokens), range(NUM_LAYERS), range(2), range(2)):
        source_block, target_block = source_table[token // source_size], target_table[token // target_size]
        row = bits(source)[source_block, layer, kv, 1 + head, token % source_size]
        wanted[target_block, layer, kv, head, token % target_size] = row
    tables = [torch.tensor(table, dtype=torch.int32) for table in (source_table, target_table)]
    reshard_blocks(source, tables[0], target, tables[1], num_tokens, source_head=1, target_head=0, num_heads=2)
    assert torch.equal(bits(target), wanted)


def heads_of(num_kv_heads: int, ranks: int, rank: int) -> list[int]:
    """Each rank's share of the heads; ranks beyond them repeat each head in turn."""
    everyone = [[head] * max(1, ranks // num_kv_heads) for head in range(num_kv_heads)]
    flat = [head for repeated in everyone for head in repeated]
    share = len(flat) // ranks
    return flat[rank * share : (rank + 1) * share]


def can_split(num_kv_heads: int, ranks: int) -> bool:
    return num_kv_heads % ranks == 0 or ranks % num_kv_heads == 0


PAIRS = [
    (num_kv_heads, source_ranks, target_ranks)
    for num_kv_heads, source_ranks, target_ranks in product((1, 2, 3, 4, 8), (1, 2, 4), (1, 2, 4))
    if can_split(num_kv_heads, source_ranks) and can_split(num_kv_heads, target_ranks)
] + [(6, 2, 3), (6, 3, 2), (12, 4, 3)]  # shares that overlap without one holding the other


@pytest.mark.parametrize("num_kv_heads, source_ranks, target_ranks", PAIRS)
def test_pieces_cover_every_head_once(num_kv_heads: int, source_ranks: int, target_ranks: int) -> None:
    for target_rank in range(target_ranks):
        wanted = heads_of(num_kv_heads, target_ranks, target_rank)
        filled = []
        for piece in reshard_pieces(num_kv_heads, source_ranks, target_ranks, target_rank):
            held = heads_of(num_kv_heads, source_ranks, piece.source_rank)
            for offset in range(piece.num_heads):
                assert held[piece.source_head + offset] == wanted[piece.target_head + offset]
                filled.append(piece.target_head + offset)
        assert filled == list(range(len(wanted)))


@pytest.mark.parametrize("num_kv_heads, source_ranks, target_ranks", PAIRS)
def test_a_source_rank_is_asked_once(num_kv_heads: int, source_ranks: int, target_ranks: int) -> None:
    for target_rank in range(target_ranks):
        asked = [piece.source_rank for piece in reshard_pieces(num_kv_heads, source_ranks, target_ranks, target_rank)]
        assert len(set(asked)) == len(asked)


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4, 8])
def test_equal_splits_pair_rank_with_rank(num_kv_heads: int) -> None:
    """Also where heads are replicated: every replica reads from its own counterpart, not all from one."""
    for rank in range(4):
        assert [piece.source_rank for piece in reshard_pieces(num_kv_heads, 4, 4, rank)] == [rank]


@pytest.mark.parametrize(
    "arguments, message",
    [((3, 2, 1, 0), "3 KV heads cannot be split over 2 ranks"), ((8, 1, 2, 2), "rank 2 is not one of 2")],
)
def test_impossible_splits_are_refused(arguments: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reshard_pieces(*arguments)
