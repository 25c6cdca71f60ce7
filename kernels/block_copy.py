"""KV blocks from pool to pool in plain torch: whole ones, and re-sharded ones whose layout differs on the two sides.

The copies of a CPU, and what the GPU's are compared with. One `copy_` per contiguous or strided piece: indexing with a
tensor of ids moves element by element. Knows tensors and head counts; which block belongs to whom, and how the bytes
came within reach, is decided elsewhere.
"""

from dataclasses import dataclass
from math import gcd

from torch import Tensor


def copy_blocks(source: Tensor, source_ids: Tensor, target: Tensor, target_ids: Tensor) -> None:
    """target[target_ids[i]] = source[source_ids[i]]

    source, target: uint8 [num_blocks, block_bytes], contiguous; ids: int32 or int64 [n]. Target blocks are distinct and
    none is a source block of the same pool. Staging memory is a pool as well, with ids 0 to n - 1.
    """
    assert source.shape[1:] == target.shape[1:] and source.dtype == target.dtype
    for source_id, target_id in zip(source_ids.tolist(), target_ids.tolist(), strict=True):
        target[target_id].copy_(source[source_id])


def reshard_blocks(
    source: Tensor,
    source_table: Tensor,
    target: Tensor,
    target_table: Tensor,
    num_tokens: int,
    *,
    source_head: int,
    target_head: int,
    num_heads: int,
) -> None:
    """Tokens 0 to num_tokens - 1 of one sequence: `num_heads` heads from `source_head` on, to those from `target_head`.

    source, target: [num_blocks, num_layers, 2, num_kv_heads, block_size, head_dim], of one type; num_kv_heads and
    block_size may differ. tables: int32 [blocks of the sequence]; target blocks are distinct. What else is in them,
    tokens past the end included, stays as it is.
    """
    source_size, target_size = source.shape[4], target.shape[4]
    assert (
        source.dtype == target.dtype and source.shape[1:3] == target.shape[1:3] and source.shape[5] == target.shape[5]
    )
    assert source_head + num_heads <= source.shape[3] and target_head + num_heads <= target.shape[3]
    source_ids, target_ids = source_table.tolist(), target_table.tolist()
    source_heads, target_heads = source.narrow(3, source_head, num_heads), target.narrow(3, target_head, num_heads)
    unit = gcd(source_size, target_size)  # so many tokens lie in one block on both sides
    for first in range(0, num_tokens, unit):
        count = min(unit, num_tokens - first)
        tokens = source_heads[source_ids[first // source_size]].narrow(3, first % source_size, count)
        target_heads[target_ids[first // target_size]].narrow(3, first % target_size, count).copy_(tokens)


@dataclass(frozen=True, slots=True)
class Piece:
    """Heads that one source rank has for one target rank: arguments of `reshard_blocks`."""

    source_rank: int
    source_head: int
    target_head: int
    num_heads: int


def reshard_pieces(num_kv_heads: int, source_ranks: int, target_ranks: int, target_rank: int) -> list[Piece]:
    """What a target rank needs of which source rank when KV heads are split over other numbers of ranks, in head order.

    A rank has num_kv_heads / ranks neighbouring heads or, where there are more ranks than heads, one, which ranks /
    num_kv_heads neighbouring ranks have too. Target ranks that share a head spread over the source ranks that share it.
    Raises ValueError where neither number divides the other.
    """
    source_heads, source_copies = _split(num_kv_heads, source_ranks)
    target_heads, target_copies = _split(num_kv_heads, target_ranks)
    if not 0 <= target_rank < target_ranks:
        raise ValueError(f"target rank {target_rank} is not one of {target_ranks}")
    copy = target_rank % target_copies * source_copies // target_copies
    head = first = target_rank // target_copies * target_heads
    pieces = []
    while head < first + target_heads:
        num_heads = min(source_heads - head % source_heads, first + target_heads - head)
        source_rank = head // source_heads * source_copies + copy
        pieces.append(Piece(source_rank, head % source_heads, head - first, num_heads))
        head += num_heads
    return pieces


def _split(num_kv_heads: int, ranks: int) -> tuple[int, int]:
    """(heads of one rank, ranks that have the same heads)."""
    if num_kv_heads < 1 or ranks < 1 or max(num_kv_heads, ranks) % min(num_kv_heads, ranks):
        raise ValueError(f"{num_kv_heads} KV heads cannot be split over {ranks} ranks: one must divide the other")
    return max(1, num_kv_heads // ranks), max(1, ranks // num_kv_heads)
