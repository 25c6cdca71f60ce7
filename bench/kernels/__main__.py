"""`python -m bench.kernels compile | interpret | roofline | table`: what can be said of the kernels without a GPU.

compile: machine code as JSON lines, one per case and capability: family, case, capability, kernels, faults. Exit code
    1 when there is a fault.
interpret: the small cases' errors as JSON lines; needs TRITON_INTERPRET=1, and the others need it unset.
roofline: the least time of every case on every type of GPU, by its data sheet, as a Markdown table.
table: every kernel's interpreter error, registers, shared memory, spills, occupancy and key opcodes, likewise.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict

import msgspec

from bench.kernels.case import CAPABILITIES
from bench.kernels.compiled import CompiledKernel, compile_cases, faults
from bench.kernels.families import FAMILIES, cases_of, compiled_for
from bench.kernels.gpu_types import GPU_TYPES
from bench.kernels.interpreted import InterpretedCase, interpret
from bench.kernels.kernel_table import kernel_table
from bench.kernels.roofline import roofline_table


def main() -> None:
    """One command, for all families, capabilities and types of GPU unless some are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["compile", "interpret", "roofline", "table"])
    parser.add_argument("--capability", type=int, choices=CAPABILITIES, action="append", help="of compile and table")
    parser.add_argument("--family", choices=FAMILIES, action="append")
    parser.add_argument("--half", action="store_true", help="of compile: each case on two capabilities, not on all")
    parser.add_argument("--gpu", choices=GPU_TYPES, action="append", help="of roofline")
    arguments = parser.parse_args()
    families, capabilities = arguments.family or FAMILIES, arguments.capability or CAPABILITIES
    match arguments.command:
        case "compile":
            if _print_compiled(families, capabilities, arguments.half):
                sys.exit(1)
        case "interpret":
            for family in families:
                for one in interpret(family):
                    print(msgspec.json.encode(one).decode(), flush=True)
        case "roofline":
            cases = [case for family in families for case in cases_of(family)]
            gpus = {name: GPU_TYPES[name] for name in arguments.gpu or GPU_TYPES}
            print(roofline_table(cases, gpus))
            print("\n".join(["", *(f"{name}: {gpu.source}" for name, gpu in gpus.items())]))
        case "table":
            compiled = {family: _compiled(family, capabilities) for family in families}
            print(kernel_table(compiled, _interpreted_in_child(families), capabilities))


def _print_compiled(families: Sequence[str], capabilities: Sequence[int], is_half: bool) -> bool:
    """Whether there was any fault."""
    has_faults = False
    for capability in capabilities:
        able = [case for family in families for case in compiled_for(family, capability, is_half)]
        for case, kernels in zip(able, compile_cases(able, capability), strict=True):
            record = {
                "family": case.family,
                "case": case.name,
                "capability": capability,
                "kernels": [asdict(kernel) for kernel in kernels],
                "faults": faults(case, kernels),
            }
            print(json.dumps(record), flush=True)
            has_faults = has_faults or bool(record["faults"])
    return has_faults


def _compiled(family: str, capabilities: Sequence[int]) -> list[CompiledKernel]:
    return [
        kernel
        for capability in capabilities
        for kernels in compile_cases(compiled_for(family, capability), capability)
        for kernel in kernels
    ]


def _interpreted_in_child(families: Sequence[str]) -> list[InterpretedCase]:
    """Kernels are defined for the interpreter or for the compiler, once per process; this one's are compiled."""
    command = [sys.executable, "-m", "bench.kernels", "interpret"]
    command += [part for family in families for part in ("--family", family)]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
    return [msgspec.json.decode(line, type=InterpretedCase) for line in done.stdout.splitlines()]


if __name__ == "__main__":
    main()
