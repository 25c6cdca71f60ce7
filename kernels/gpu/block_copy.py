"""KV blocks from pool to pool on a GPU where the two are cut otherwise. Twin: `block_copy` in kernels/.

Bytes move as 64-bit words, two to a load or store of 128 bits, so that one kernel serves every type of cache. One
program moves 8 KiB: 64 bytes under way per thread, and enough programs for every multiprocessor from a few blocks on.
Nothing about the cut is compiled in: the kernel that a start-up test has compiled serves every cut that is met later.
A source may lie on a peer GPU, mapped by CUDA IPC: torch would take it for a tensor of that GPU, and all that is needed
of it is its address.

Bound by memory: 2 * num_rows * row_bytes per block, e.g. 2 MiB for half the heads of Llama 3 8B in bf16; from a peer,
by half of it on the link.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 512  # vectors of one program
_VECTOR_BYTES = 16
_NUM_WARPS = 4


@triton.jit(
    do_not_specialize=[
        "source_address",
        "target_address",
        "num_blocks",
        "num_tiles",
        "num_vectors",
        "row_vectors",
        "source_block_vectors",
        "source_row_vectors",
        "source_first",
        "target_block_vectors",
        "target_row_vectors",
        "target_first",
    ]
)
def _reshard_blocks_kernel(
    source_address: tl.int64,
    target_address: tl.int64,
    ids_ptr,
    num_blocks,
    num_tiles,  # of a block
    num_vectors,  # of a block that are copied
    row_vectors,  # of a row that are copied
    source_block_vectors,
    source_row_vectors,
    source_first,  # vector in each row
    target_block_vectors,
    target_row_vectors,
    target_first,
    TILE: tl.constexpr,
):
    index = tl.program_id(0) // num_tiles
    vectors = tl.program_id(0) % num_tiles * TILE + tl.arange(0, TILE)
    inside = (vectors < num_vectors)[:, None]
    row = vectors // row_vectors
    place = vectors % row_vectors
    source_block = tl.load(ids_ptr + index).to(tl.int64)
    target_block = tl.load(ids_ptr + num_blocks + index).to(tl.int64)
    words = tl.arange(0, 2)[None, :]
    source_ptr = tl.multiple_of(source_address.to(tl.pointer_type(tl.int64)), 16)
    target_ptr = tl.multiple_of(target_address.to(tl.pointer_type(tl.int64)), 16)
    source_ptr += source_block * source_block_vectors * 2
    target_ptr += target_block * target_block_vectors * 2
    source_vectors = row * source_row_vectors + source_first + place
    target_vectors = row * target_row_vectors + target_first + place
    moved = tl.load(source_ptr + source_vectors[:, None] * 2 + words, mask=inside)
    tl.store(target_ptr + target_vectors[:, None] * 2 + words, moved, mask=inside)


def reshard_blocks(
    source: int,
    target: int,
    ids: Tensor,
    *,
    num_rows: int,
    row_bytes: int,
    source_block_bytes: int,
    source_byte: int,
    target_block_bytes: int,
    target_byte: int,
) -> None:
    """`block_copy.reshard_blocks` between addresses that kernels on the ids' device may touch; all that is bytes is a
    multiple of 16, rows of a block included."""
    source_row_bytes, target_row_bytes = source_block_bytes // num_rows, target_block_bytes // num_rows
    assert source_row_bytes * num_rows == source_block_bytes and target_row_bytes * num_rows == target_block_bytes
    assert 0 <= source_byte <= source_row_bytes - row_bytes and 0 <= target_byte <= target_row_bytes - row_bytes
    sizes = row_bytes, source_row_bytes, source_byte, target_row_bytes, target_byte
    assert not any(size % _VECTOR_BYTES for size in (source, target, *sizes)), "every row begins where a vector may"
    assert ids.dtype == torch.int32 and ids.is_contiguous() and ids.shape[0] == 2
    num_blocks = ids.shape[1]
    row_vectors, source_row, source_first, target_row, target_first = (size // _VECTOR_BYTES for size in sizes)
    num_vectors = num_rows * row_vectors
    if not num_blocks or not num_vectors:
        return
    num_tiles = triton.cdiv(num_vectors, _TILE)
    _reshard_blocks_kernel[(num_blocks * num_tiles,)](
        source,
        target,
        ids,
        num_blocks,
        num_tiles,
        num_vectors,
        row_vectors,
        num_rows * source_row,
        source_row,
        source_first,
        num_rows * target_row,
        target_row,
        target_first,
        TILE=_TILE,
        num_warps=_NUM_WARPS,
    )
