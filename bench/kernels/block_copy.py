"""Cases of kernels/gpu/block_copy.py: what a target rank takes of one source rank's blocks, joined, split and odd."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.kernels.case import Expected, Inputs, KernelCase
from kernels import block_copy
from kernels.gpu import block_copy as gpu_block_copy

_EXPECTED = Expected(
    max_registers=40,
    opcodes_everywhere=("LDG.E.128", "STG.E.128"),
    forbidden=("LDG.E.U16", "LDG.E.U8", "STG.E.U16", "STG.E.U8", "STG.E.64"),
)


def cases() -> list[KernelCase]:
    """63 blocks of Llama 3 8B (32 layers, 8 KV heads of 16 x 128 in bf16), and heads of 80 in float8."""
    return [
        _resharded("1 rank to 2", 63, 32, 8, 2 * 16 * 128, (1, 2), 1),
        _resharded("4 ranks to 1", 63, 32, 8, 2 * 16 * 128, (4, 1), 0),
        _resharded("1 rank to 8", 63, 32, 8, 2 * 16 * 128, (1, 8), 5),
        _resharded("2 ranks to 1, heads of 80, float8", 63, 32, 8, 16 * 80, (2, 1), 0),
    ]


def small_cases() -> list[KernelCase]:
    """For the interpreter."""
    return [
        _resharded("small, joined", 3, 2, 2, 48, (2, 1), 0),
        _resharded("small, split", 3, 2, 4, 16 * 80, (1, 2), 1),
    ]


def _resharded(
    name: str,
    num_blocks: int,
    num_layers: int,
    num_kv_heads: int,
    head_bytes: int,
    ranks: tuple[int, int],
    target_rank: int,
) -> KernelCase:
    """All that one target rank needs; ranks: (source, target). Every source rank has the same blocks."""
    source_heads, target_heads = (num_kv_heads // number for number in ranks)
    num_rows = 2 * num_layers
    pieces = block_copy.reshard_pieces(num_kv_heads, *ranks, target_rank)
    source_block_bytes, target_block_bytes = (num_rows * heads * head_bytes for heads in (source_heads, target_heads))
    pool_blocks = num_blocks + 8

    def make(inputs: Inputs) -> tuple[Any, ...]:
        words = inputs.randn(ranks[0], pool_blocks * source_block_bytes // 4, dtype=torch.float32)
        target = inputs.zeros(pool_blocks * target_block_bytes, dtype=torch.uint8)
        ids = torch.stack([inputs.permutation(pool_blocks, num_blocks) for _ in range(2)])
        return words.view(torch.uint8), target, ids

    def run(reshard: Callable[..., None], place: Callable[[Tensor], Any]) -> Callable[..., Tensor]:
        def resharded(sources: Tensor, target: Tensor, ids: Tensor) -> Tensor:
            for piece in pieces:
                reshard(
                    place(sources[piece.source_rank]),
                    place(target),
                    ids,
                    num_rows=num_rows,
                    row_bytes=piece.num_heads * head_bytes,
                    source_block_bytes=source_block_bytes,
                    source_byte=piece.source_head * head_bytes,
                    target_block_bytes=target_block_bytes,
                    target_byte=piece.target_head * head_bytes,
                )
            return target.view(torch.int32)

        return resharded

    num_heads = sum(piece.num_heads for piece in pieces)
    return KernelCase(
        family="block_copy",
        name=f"{name}: {num_blocks} blocks, {num_heads} of {num_kv_heads} heads",
        make=make,
        launch=run(gpu_block_copy.reshard_blocks, Tensor.data_ptr),
        twin=run(block_copy.reshard_blocks, lambda tensor: tensor),
        tolerance=0,
        traffic_bytes=2 * num_blocks * num_rows * num_heads * head_bytes,
        expected=_EXPECTED,
    )
