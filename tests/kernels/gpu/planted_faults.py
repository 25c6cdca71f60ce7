"""Compiles two bad kernels and prints the faults that are found in them."""

import json
import sys

import torch
import triton
import triton.language as tl
from torch import Tensor

from bench.kernels.case import Expected, Inputs, KernelCase
from bench.kernels.compiled import compile_cases, faults


@triton.jit  # type: ignore[untyped-decorator]
def _copy(source_ptr, target_ptr, stride, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    columns = tl.program_id(0) * stride + tl.arange(0, BLOCK)
    tl.store(target_ptr + columns, tl.load(source_ptr + columns))


@triton.jit  # type: ignore[untyped-decorator]
def _product(x_ptr, out_ptr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    places = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    x = tl.load(x_ptr + places)
    tl.store(out_ptr + places, tl.dot(x, x).to(tl.bfloat16))


def case(name: str, launch: object, expected: Expected) -> KernelCase:
    def make(inputs: Inputs) -> tuple[Tensor, Tensor]:
        return inputs.randn(65536, dtype=torch.bfloat16), inputs.randn(65536, dtype=torch.bfloat16)

    return KernelCase("planted", name, make, launch, torch.add, 0, 0, expected=expected)  # type: ignore[arg-type]


def main() -> None:
    cases = [
        case(
            "a stride of 17",
            lambda x, out: _copy[(2,)](x, out, 17, 1024, num_warps=4),
            Expected(forbidden=("LDG.E.U16",)),
        ),
        case(
            "128x128 in one warp",
            lambda x, out: _product[(1,)](x, out, 128, num_warps=1),
            Expected(opcodes={80: ("UNKNOWN",)}),
        ),
    ]
    found = [faults(one, kernels) for one, kernels in zip(cases, compile_cases(cases, 80), strict=True)]
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
