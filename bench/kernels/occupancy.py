"""How many of a kernel's warps one multiprocessor holds at once, by arithmetic. Pure.

The rules and limits are those of NVIDIA's occupancy calculator (cuda_occupancy.h of CUDA 13).
"""

from dataclasses import dataclass

_REGISTERS = 65536
_PARTITIONS = 4
_REGISTERS_AT_ONCE = 256  # a warp's registers come in pieces of this many
_SHARED_AT_ONCE = 128  # bytes
_RESERVED_SHARED_BYTES = 1 << 10  # that the driver takes for itself, per block


@dataclass(frozen=True, slots=True)
class Multiprocessor:
    """What one holds."""

    max_warps: int
    max_blocks: int
    shared_bytes: int


# By compute capability; CUDA C++ programming guide, technical specifications.
MULTIPROCESSORS = {
    80: Multiprocessor(64, 32, 164 << 10),
    89: Multiprocessor(48, 24, 100 << 10),
    90: Multiprocessor(64, 32, 228 << 10),
    100: Multiprocessor(64, 32, 228 << 10),
    120: Multiprocessor(48, 24, 100 << 10),
}


def num_resident_blocks(capability: int, registers: int, shared_bytes: int, num_warps: int) -> int:
    """Blocks of `num_warps` warps that a multiprocessor holds; 0: the kernel cannot be launched.

    registers: per thread; shared_bytes: per block.
    """
    limits = MULTIPROCESSORS[capability]
    of_warp = max(1, -(-registers * 32 // _REGISTERS_AT_ONCE)) * _REGISTERS_AT_ONCE
    # A warp lives in one partition. A block that would need more registers than there are, counted as if its warps
    # filled all partitions alike, is refused.
    by_registers = _REGISTERS // _PARTITIONS // of_warp * _PARTITIONS // num_warps
    if of_warp * -(-num_warps // _PARTITIONS) * _PARTITIONS > _REGISTERS:
        by_registers = 0
    shared = -(-(shared_bytes + _RESERVED_SHARED_BYTES) // _SHARED_AT_ONCE) * _SHARED_AT_ONCE
    return min(limits.max_blocks, limits.max_warps // num_warps, by_registers, limits.shared_bytes // shared)


def occupancy(capability: int, registers: int, shared_bytes: int, num_warps: int) -> float:
    """Resident warps as a share of the most there can be."""
    blocks = num_resident_blocks(capability, registers, shared_bytes, num_warps)
    return blocks * num_warps / MULTIPROCESSORS[capability].max_warps
