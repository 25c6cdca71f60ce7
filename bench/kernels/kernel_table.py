"""Every kernel in one table: how far it is from its twin, and what it takes of each architecture. Pure.

A cell is the worst over the family's production cases: the most registers, shared memory and spills, the least
occupancy; and which of the instructions that matter are there at all.
"""

from collections.abc import Mapping, Sequence

from bench.kernels.compiled import CompiledKernel
from bench.kernels.interpreted import InterpretedCase
from bench.kernels.occupancy import occupancy
from bench.markdown import markdown_table

# Products on tensor cores (by warp, warp group, tcgen05), copies to shared memory beside computing, wide loads.
KEY_OPCODES = ("HMMA", "HGMMA", "UTCHMMA", "LDGSTS", "LDG.E.128")


def kernel_table(
    compiled: Mapping[str, Sequence[CompiledKernel]],
    interpreted: Sequence[InterpretedCase],
    capabilities: Sequence[int],
) -> str:
    """Markdown, a row per kernel. compiled: family -> its cases' kernels on all capabilities."""
    header = ["family", "kernel", "interpreter max error", *(f"sm_{capability}" for capability in capabilities)]
    rows = []
    for family, kernels in compiled.items():
        errors = [f"{one.error:.1e} of {one.tolerance:g}" for one in _worst_of(family, interpreted)]
        for name in dict.fromkeys(kernel.name for kernel in kernels):
            cells = [
                _cell([kernel for kernel in kernels if (kernel.name, kernel.capability) == (name, capability)])
                for capability in capabilities
            ]
            rows.append([family, name, *(errors or ["-"]), *cells])
    return markdown_table(header, rows)


def _worst_of(family: str, interpreted: Sequence[InterpretedCase]) -> list[InterpretedCase]:
    mine = [one for one in interpreted if one.family == family]
    return sorted(mine, key=lambda one: one.error)[-1:]


def _cell(kernels: Sequence[CompiledKernel]) -> str:
    if not kernels:
        return "-"
    shares = [
        occupancy(kernel.capability, kernel.registers, kernel.shared_bytes, kernel.num_warps) for kernel in kernels
    ]
    figures = [
        f"{max(kernel.registers for kernel in kernels)} reg",
        f"{max(kernel.shared_bytes for kernel in kernels) / 1024:.1f} KiB",
        f"{max(kernel.stack_bytes for kernel in kernels)} B spilled",
        f"occupancy {min(shares):.0%}",
    ]
    found = [opcode.replace(".E.", ".") for opcode in KEY_OPCODES if any(kernel.count(opcode) for kernel in kernels)]
    return ", ".join(figures) + "; " + (" ".join(found) or "none of the key opcodes")
