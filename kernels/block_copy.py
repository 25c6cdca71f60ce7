"""KV blocks from pool to pool where the two are cut otherwise, in plain torch; and the plan of such a re-shard.

What the GPU's copies are compared with. One `copy_` per block: indexing with a tensor of ids moves element by element.
Knows tensors and head counts; which block belongs to whom, and how the bytes came within reach, is decided elsewhere.
"""

from dataclasses import dataclass

from torch import Tensor


def reshard_blocks(
    source: Tensor,
    target: Tensor,
    ids: Tensor,
    *,
    num_rows: int,
    row_bytes: int,
    source_block_bytes: int,
    source_byte: int,
    target_block_bytes: int,
    target_byte: int,
) -> None:
    """Of every row of source block ids[0, i], `row_bytes` from `source_byte` on: to that row of target block ids[1, i],
    from `target_byte` on.

    source, target: uint8 [blocks * block_bytes]. A block is `num_rows` equal rows, e.g. the KV heads of a layer's keys;
    one row is all of it. ids: int32 [2, n]; target blocks are distinct and none is a source block of the same pool.
    """
    source_rows = source.view(-1, num_rows, source_block_bytes // num_rows).narrow(2, source_byte, row_bytes)
    target_rows = target.view(-1, num_rows, target_block_bytes // num_rows).narrow(2, target_byte, row_bytes)
    for source_id, target_id in zip(*ids.tolist(), strict=True):
        target_rows[target_id].copy_(source_rows[source_id])


@dataclass(frozen=True, slots=True)
class Piece:
    """Heads that one source rank has for one target rank."""

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
