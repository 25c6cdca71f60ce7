"""Cases of kernels/gpu/block_copy.py: whole blocks of several sizes, and re-sharding between ranks and block sizes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.kernels.case import CAPABILITIES, FLOAT8_CAPABILITIES, Expected, Inputs, KernelCase
from kernels import block_copy
from kernels.gpu import block_copy as gpu_block_copy

_EXPECTED = Expected(
    max_registers=40,
    opcodes_everywhere=("LDG.E.128", "STG.E.128"),
    forbidden=("LDG.E.U16", "LDG.E.U8", "STG.E.U16", "STG.E.U8", "STG.E.64"),
)


def cases() -> list[KernelCase]:
    """64 blocks of Llama 3 8B (2 MiB each), of SmolLM2, of an odd size; 1000 tokens between layouts of Llama 3 8B."""
    float8 = torch.float8_e4m3fn
    return [
        _copied("Llama 3 8B", 64, 32 * 2 * 8 * 16 * 128 * 2),
        _copied("SmolLM2", 64, 30 * 2 * 3 * 16 * 64 * 2),
        _copied("an odd number of vectors", 64, 16 * 4099),
        _resharded("blocks of 16 to 32", 1000, (1, 16), (1, 32), 0),
        _resharded("1 rank to 2", 1000, (1, 16), (2, 16), 1),
        _resharded("4 ranks to 1, blocks of 32 to 16", 1000, (4, 32), (1, 16), 0),
        _resharded("1 rank to 2, heads of 80, float8", 1000, (1, 16), (2, 16), 1, head_dim=80, dtype=float8),
    ]


def small_cases() -> list[KernelCase]:
    """For the interpreter."""
    return [
        _copied("small", 2, 16 * 9),
        _resharded("small, joined", 37, (2, 16), (1, 32), 0, num_layers=2, num_kv_heads=2, head_dim=24),
        _resharded("small, split", 37, (1, 32), (2, 16), 1, num_layers=2, num_kv_heads=2, head_dim=24),
    ]


def _copied(name: str, num_blocks: int, block_bytes: int) -> KernelCase:
    def make(inputs: Inputs) -> tuple[Any, ...]:
        source = inputs.randn(2 * num_blocks, block_bytes // 2, dtype=torch.bfloat16).view(torch.uint8)
        target = inputs.zeros(2 * num_blocks, block_bytes, dtype=torch.uint8)
        source_ids, target_ids = [inputs.permutation(2 * num_blocks, num_blocks, dtype=torch.int64) for _ in range(2)]
        return source, source_ids, target, target_ids

    def run(copy: Callable[..., None]) -> Callable[..., Tensor]:
        def copied(source: Tensor, source_ids: Tensor, target: Tensor, target_ids: Tensor) -> Tensor:
            copy(source, source_ids, target, target_ids)
            return target.view(torch.int32)

        return copied

    return KernelCase(
        family="block_copy",
        name=f"{name}: {num_blocks} blocks of {block_bytes} bytes",
        make=make,
        launch=run(gpu_block_copy.copy_blocks),
        twin=run(block_copy.copy_blocks),
        tolerance=0,
        traffic_bytes=2 * num_blocks * block_bytes,
        expected=_EXPECTED,
    )


def _resharded(
    name: str,
    num_tokens: int,
    source: tuple[int, int],
    target: tuple[int, int],
    target_rank: int,
    num_layers: int = 32,
    num_kv_heads: int = 8,
    head_dim: int = 128,
    dtype: torch.dtype = torch.bfloat16,
) -> KernelCase:
    """All that one target rank needs; source, target: (ranks, block_size). Every source rank has the same table."""
    (source_ranks, source_size), (target_ranks, target_size) = source, target
    pieces = block_copy.reshard_pieces(num_kv_heads, source_ranks, target_ranks, target_rank)

    def make(inputs: Inputs) -> tuple[Any, ...]:
        source_blocks, target_blocks = -(-num_tokens // source_size), -(-num_tokens // target_size)
        source_shape = (source_blocks + 8, num_layers, 2, num_kv_heads // source_ranks, source_size, head_dim)
        target_shape = (target_blocks + 8, num_layers, 2, num_kv_heads // target_ranks, target_size, head_dim)
        return (
            inputs.randn(source_ranks, *source_shape, dtype=dtype),
            inputs.permutation(source_blocks + 8, source_blocks),
            inputs.zeros(*target_shape, dtype=dtype),
            inputs.permutation(target_blocks + 8, target_blocks),
        )

    def run(reshard: Callable[..., None]) -> Callable[..., Tensor]:
        def resharded(sources: Tensor, source_table: Tensor, target: Tensor, target_table: Tensor) -> Tensor:
            for piece in pieces:
                reshard(
                    sources[piece.source_rank],
                    source_table,
                    target,
                    target_table,
                    num_tokens,
                    source_head=piece.source_head,
                    target_head=piece.target_head,
                    num_heads=piece.num_heads,
                )
            return target.view(torch.int32)

        return resharded

    num_heads = sum(piece.num_heads for piece in pieces)
    return KernelCase(
        family="block_copy",
        name=f"{name}: {num_tokens} tokens, {num_heads} of {num_kv_heads} heads",
        make=make,
        launch=run(gpu_block_copy.reshard_blocks),
        twin=run(block_copy.reshard_blocks),
        tolerance=0,
        traffic_bytes=2 * num_tokens * num_layers * 2 * num_heads * head_dim * dtype.itemsize,
        expected=_EXPECTED,
        capabilities=FLOAT8_CAPABILITIES if dtype.itemsize == 1 else CAPABILITIES,
    )
