"""Cases of kernels/gpu/rope.py, q and k cut from one qkv matrix as the model does."""

from typing import Any

import torch
from torch import Tensor

from bench.kernels.case import Expected, Inputs, KernelCase
from kernels import reference
from kernels.gpu import rope

_EXPECTED = Expected(
    max_registers=128, opcodes_everywhere=("LDG.E.128", "STG.E.128"), forbidden=("LDG.E.U16", "STG.E.U16")
)
# query heads, KV heads, head_dim: Llama 3 8B, Qwen2.5 0.5B, one of 80, SmolLM2
_SHAPES = ((32, 8, 128), (14, 2, 64), (32, 32, 80), (9, 3, 64))


def cases() -> list[KernelCase]:
    """Plain and with the norm, one prefill chunk each."""
    return [case for shape in _SHAPES for case in _of(2048, *shape)]


def small_cases() -> list[KernelCase]:
    """For the interpreter."""
    return _of(2, 3, 1, 80)


def _of(tokens: int, heads: int, kv_heads: int, head_dim: int) -> list[KernelCase]:
    dtype = torch.bfloat16
    name = f"{tokens} tokens, {heads}/{kv_heads} heads of {head_dim}, bf16"
    traffic = 2 * tokens * (heads + kv_heads + 1) * head_dim * dtype.itemsize

    def qk(inputs: Inputs) -> tuple[Tensor, Tensor]:
        qkv = inputs.randn(tokens, heads + 2 * kv_heads, head_dim, dtype=dtype)
        q, k, _ = torch.split(qkv, [heads, kv_heads, kv_heads], dim=1)
        return q, k

    def angles(inputs: Inputs) -> tuple[Tensor, Tensor]:
        return inputs.randn(tokens, head_dim, dtype=dtype), inputs.randn(tokens, head_dim, dtype=dtype)

    def plain(inputs: Inputs) -> tuple[Any, ...]:
        return *qk(inputs), *angles(inputs)

    def normed(inputs: Inputs) -> tuple[Any, ...]:
        weights = [inputs.randn(head_dim, dtype=dtype) for _ in range(2)]
        return *qk(inputs), *weights, 1e-6, *angles(inputs)

    return [
        KernelCase("rope", name, plain, rope.rope, reference.rope, 3e-2, traffic, 6 * traffic // 4, expected=_EXPECTED),
        KernelCase(
            "rope",
            f"norm, {name}",
            normed,
            rope.norm_rope,
            reference.norm_rope,
            6e-2,
            traffic,
            10 * traffic // 4,
            expected=_EXPECTED,
        ),
    ]
