"""How a model's KV heads lie in blocks when several ranks share them, and which bytes pass between other splits. Pure.

A block of a rank is [num_rows, its heads, head_bytes], where the rows are layers times keys and values.
"""

from dataclasses import dataclass

from kernels.block_copy import Piece, reshard_pieces
from kv_transfer.copy_runs import BlockCut


@dataclass(frozen=True, slots=True)
class HeadSplit:
    """What is the same for every number of ranks."""

    num_rows: int  # num_layers * 2
    num_kv_heads: int  # of the whole model
    head_bytes: int  # one KV head of one layer in one block, keys or values: block_size * head_dim * itemsize

    def block_bytes(self, num_ranks: int) -> int:
        """Bytes of a rank's block; where there are more ranks than heads, each has one."""
        return self.num_rows * max(1, self.num_kv_heads // num_ranks) * self.head_bytes

    def heads_in(self, block_bytes: int) -> int:
        """KV heads of a rank whose blocks have that size."""
        return block_bytes // (self.num_rows * self.head_bytes)

    def cuts(self, source_ranks: int, target_ranks: int, target_rank: int) -> list[tuple[int, BlockCut]]:
        """(source rank, what of its blocks goes where in the target's) for all that a target rank needs.

        Raises ValueError where the heads cannot be split so.
        """
        return [
            (piece.source_rank, self._cut(source_ranks, target_ranks, piece))
            for piece in reshard_pieces(self.num_kv_heads, source_ranks, target_ranks, target_rank)
        ]

    def _cut(self, source_ranks: int, target_ranks: int, piece: Piece) -> BlockCut:
        return BlockCut(
            source_block_bytes=self.block_bytes(source_ranks),
            target_block_bytes=self.block_bytes(target_ranks),
            num_rows=self.num_rows,
            source_byte=piece.source_head * self.head_bytes,
            target_byte=piece.target_head * self.head_bytes,
            row_bytes=piece.num_heads * self.head_bytes,
        )
