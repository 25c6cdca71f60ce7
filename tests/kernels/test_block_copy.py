"""The plain re-shard against a loop over single bytes, and the plan of one against its purpose."""

from itertools import product

import pytest
import torch
from torch import Tensor

from kernels.block_copy import reshard_blocks, reshard_pieces

NUM_ROWS = 3


def random_pool(num_blocks: int, block_bytes: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num_blocks * block_bytes,), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("ids", [([], []), ([5], [0]), ([4, 4, 0, 2], [1, 0, 3, 6])], ids=str)
@pytest.mark.parametrize("row_bytes, source_byte, target_byte", [(2, 0, 5), (4, 1, 0), (5, 0, 2)])
def test_reshard_blocks(ids: tuple[list[int], list[int]], row_bytes: int, source_byte: int, target_byte: int) -> None:
    source_row, target_row = 5, 7
    source = random_pool(6, NUM_ROWS * source_row, seed=1)
    target = random_pool(7, NUM_ROWS * target_row, seed=2)
    wanted, unchanged = target.clone(), source.clone()
    for source_id, target_id in zip(*ids, strict=True):
        for row, byte in product(range(NUM_ROWS), range(row_bytes)):
            moved = source[(source_id * NUM_ROWS + row) * source_row + source_byte + byte]
            wanted[(target_id * NUM_ROWS + row) * target_row + target_byte + byte] = moved
    reshard_blocks(
        source,
        target,
        torch.tensor(ids, dtype=torch.int32),
        num_rows=NUM_ROWS,
        row_bytes=row_bytes,
        source_block_bytes=NUM_ROWS * source_row,
        source_byte=source_byte,
        target_block_bytes=NUM_ROWS * target_row,
        target_byte=target_byte,
    )
    assert torch.equal(target, wanted) and torch.equal(source, unchanged)


def test_whole_blocks_are_one_row() -> None:
    source, target = random_pool(6, 48, seed=1), random_pool(7, 48, seed=2)
    wanted = target.clone().view(7, 48)
    wanted[[1, 0, 3]] = source.view(6, 48)[[4, 4, 2]]
    ids = torch.tensor([[4, 4, 2], [1, 0, 3]], dtype=torch.int32)
    sizes = {"source_block_bytes": 48, "source_byte": 0, "target_block_bytes": 48, "target_byte": 0}
    reshard_blocks(source, target, ids, num_rows=1, row_bytes=48, **sizes)
    assert torch.equal(target, wanted.flatten())


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
