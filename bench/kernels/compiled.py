"""What Triton makes of a case for a GPU that is not here: the real launch site, compiled through a driver of our own.

The launcher runs on CPU tensors, so alignment and the other specialisations come from true arguments; every launch is
turned into a compilation. Registers, stack and opcodes are read from the cubin with the tools of Triton's wheel. Such a
process must not have TRITON_INTERPRET set. Knows Triton's driver interface of version 3.7; knows no family.
"""

import re
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime.jit import JITFunction

from bench.kernels.case import MAX_SHARED_BYTES, Inputs, KernelCase

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_RESOURCE = re.compile(r"(REG|STACK|SHARED):(\d+)")
_OPCODE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?\S+\s+)?([A-Z][A-Za-z0-9_.]*)", re.MULTILINE)
_INSTRUCTION_BYTES = 16


@dataclass(frozen=True, slots=True)
class CompiledKernel:
    """One kernel of a case on one capability."""

    name: str
    capability: int
    registers: int
    stack_bytes: int  # spills lie there
    shared_bytes: int
    num_warps: int
    opcodes: dict[str, int]  # SASS opcode with its suffixes -> how often

    def count(self, prefix: str) -> int:
        """How many instructions begin with `prefix`."""
        return sum(count for opcode, count in self.opcodes.items() if opcode.startswith(prefix))


class _CompileOnly(DriverBase):  # type: ignore[misc]
    """A driver of a GPU of `capability` that never launches. The JIT caches per device id: that is the capability."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self) -> Any:
        return lambda function, **options: [1.0, 1.0, 1.0]


@contextmanager
def _recording(capability: int) -> Iterator[list[Any]]:
    """Inside, launches compile for `capability` and are appended to the list."""
    recorded: list[Any] = []
    real_run = JITFunction.run

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = real_run(self, *args, grid=grid, warmup=True, **kwargs)
        recorded.append(kernel.result() if hasattr(kernel, "result") else kernel)
        return recorded[-1]

    triton.runtime.driver.set_active(_CompileOnly(capability))
    JITFunction.run = run
    try:
        yield recorded
    finally:
        JITFunction.run = real_run  # the driver stays: there may be no other to go back to


def compile_cases(cases: Sequence[KernelCase], capability: int) -> list[list[CompiledKernel]]:
    """The kernels that each case launches, each specialisation once, in the order of their first launch."""
    launched: list[list[str]] = []
    kernels: dict[str, Any] = {}
    for case in cases:
        with _recording(capability) as recorded:
            case.launch(*case.make(Inputs(torch.device("cpu"), compile_only=True)))
        assert recorded, f"{case.family} {case.name} launched no kernel"
        distinct = {kernel.hash: kernel for kernel in recorded}
        kernels |= distinct
        launched.append(list(distinct))
    read = dict(zip(kernels, _read(list(kernels.values()), capability), strict=True))
    return [[read[kernel_hash] for kernel_hash in hashes] for hashes in launched]


def _read(kernels: list[Any], capability: int) -> list[CompiledKernel]:
    """The code of all kernels goes through one nvdisasm, whose start takes half a second."""
    code = [_text_section(kernel.asm["cubin"]) for kernel in kernels]
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(b"".join(code))
        file.flush()
        listing = _tool("nvdisasm", "--binary", f"SM{capability}", file.name)
    opcodes = [opcode for _, opcode in sorted((int(at, 16), opcode) for at, opcode in _OPCODE.findall(listing))]
    assert len(opcodes) * _INSTRUCTION_BYTES == sum(map(len, code)), "not every instruction was understood"
    rest = iter(opcodes)
    return [
        _with_resources(kernel, capability, Counter(islice(rest, len(text) // _INSTRUCTION_BYTES)))
        for kernel, text in zip(kernels, code, strict=True)
    ]


def _with_resources(kernel: Any, capability: int, opcodes: Counter[str]) -> CompiledKernel:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
    resources = {name: int(value) for name, value in _RESOURCE.findall(usage)}
    return CompiledKernel(
        name=kernel.metadata.name,
        capability=capability,
        registers=resources["REG"],
        stack_bytes=resources["STACK"],
        shared_bytes=kernel.metadata.shared,
        num_warps=kernel.metadata.num_warps,
        opcodes=dict(opcodes),
    )


def _text_section(cubin: bytes) -> bytes:
    """The machine code of a cubin, which is an ELF file with one function. Layout: the ELF-64 object file format."""
    (headers_at,) = struct.unpack_from("<Q", cubin, 0x28)
    header_bytes, num_headers, names_index = struct.unpack_from("<HHH", cubin, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", cubin, headers_at + index * header_bytes) for index in range(num_headers)]
    names_at = headers[names_index][4]
    texts = [
        cubin[offset : offset + size]
        for name, _, _, _, offset, size in headers
        if cubin[names_at + name :].startswith(b".text.")
    ]
    assert len(texts) == 1, f"{len(texts)} functions in one cubin"
    return texts[0]


def _tool(name: str, *arguments: str) -> str:
    return subprocess.run([_TOOLS / name, *arguments], check=True, capture_output=True, text=True).stdout


def faults(case: KernelCase, kernels: list[CompiledKernel]) -> list[str]:
    """What of the case's expectations its machine code does not meet; empty when all is well."""
    found = []
    capability = kernels[0].capability
    for kernel in kernels:
        where = f"{case.family} {case.name}: {kernel.name} on sm_{capability}"
        if kernel.stack_bytes:
            found.append(f"{where} spills, {kernel.stack_bytes} bytes of stack")
        if kernel.registers > case.expected.max_registers:
            found.append(f"{where} takes {kernel.registers} registers, at most {case.expected.max_registers} wanted")
        if kernel.shared_bytes > MAX_SHARED_BYTES[capability]:
            found.append(f"{where} takes {kernel.shared_bytes} bytes of shared memory")
        found += [
            f"{where} has {kernel.count(opcode)} {opcode}" for opcode in case.expected.forbidden if kernel.count(opcode)
        ]
    for opcode in (*case.expected.opcodes_everywhere, *case.expected.opcodes.get(capability, ())):
        if not any(kernel.count(opcode) for kernel in kernels):
            found.append(f"{case.family} {case.name}: no {opcode} on sm_{capability}")
    return found
