"""Cases of kernels/gpu/kv_write.py: a cache of the model's type and one of float8."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.kernels.case import CAPABILITIES, FLOAT8_CAPABILITIES, Expected, Inputs, KernelCase
from kernels import reference
from kernels.gpu import kv_write

_BLOCK_SIZE = 16


def cases() -> list[KernelCase]:
    """A prefill chunk of Llama 3 8B and one of SmolLM2."""
    float8 = torch.float8_e4m3fn
    return [_of(2048, 8, 128, torch.bfloat16), _of(2048, 3, 64, torch.bfloat16), _of(2048, 8, 128, float8)]


def small_cases() -> list[KernelCase]:
    """For the interpreter."""
    return [_of(3, 2, 80, torch.bfloat16), _of(3, 2, 80, torch.float8_e4m3fn)]


def _of(tokens: int, kv_heads: int, head_dim: int, cache_dtype: torch.dtype) -> KernelCase:
    dtype = torch.bfloat16
    is_float8 = cache_dtype.itemsize == 1

    def make(inputs: Inputs) -> tuple[Any, ...]:
        qkv = inputs.randn(tokens, 6 * kv_heads, head_dim, dtype=dtype)
        _, k, v = torch.split(qkv, [4 * kv_heads, kv_heads, kv_heads], dim=1)
        pool = inputs.zeros(tokens // _BLOCK_SIZE + 1, 4, 2, kv_heads, _BLOCK_SIZE, head_dim, dtype=cache_dtype)
        slots = inputs.permutation(pool.shape[0] * _BLOCK_SIZE, tokens, dtype=torch.int64)
        return k, v, pool[:, 1, 0], pool[:, 1, 1], slots

    return KernelCase(
        family="kv_write",
        name=f"{tokens} tokens, {kv_heads} heads of {head_dim}, bf16 to {'float8' if is_float8 else 'bf16'}",
        make=make,
        launch=_returning_caches(kv_write.kv_write),
        twin=_returning_caches(reference.kv_write),
        tolerance=0,
        traffic_bytes=2 * tokens * kv_heads * head_dim * (dtype.itemsize + cache_dtype.itemsize),
        expected=Expected(
            max_registers=96,
            opcodes_everywhere=("LDG.E.128", "STG.E"),
            forbidden=("LDG.E.U16", "STG.E.U16", "STG.E.U8"),
        ),
        capabilities=FLOAT8_CAPABILITIES if is_float8 else CAPABILITIES,
    )


def _returning_caches(write: Callable[..., None]) -> Callable[..., list[Tensor]]:
    def run(k: Tensor, v: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor) -> list[Tensor]:
        write(k, v, key_cache, value_cache, slot_mapping)
        return [key_cache, value_cache]

    return run
