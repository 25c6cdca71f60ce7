"""Cases of kernels/gpu/attention_decode.py: heads of several models, a window, a float8 cache."""

from typing import Any

import torch

from bench.kernels.case import CAPABILITIES, FLOAT8_CAPABILITIES, Expected, Inputs, KernelCase
from kernels import reference
from kernels.gpu import attention_decode


def cases() -> list[KernelCase]:
    """16 sequences of up to 1024 tokens. A specialisation each: all of them are compiled for every architecture."""
    return [
        _of("Llama 3 8B", 16, 1024, 32, 8, 128),
        _of("Qwen2.5 0.5B", 16, 1024, 14, 2, 64),
        _of("Qwen2.5 0.5B, batch of 128, one split", 128, 1024, 14, 2, 64),
        _of("Mistral 7B, window, float8", 16, 1024, 32, 8, 128, window=512, cache_dtype=torch.float8_e4m3fn),
        _of("heads of 80", 16, 1024, 32, 32, 80),
        _of("heads of 256", 16, 1024, 8, 4, 256),
        _of("Gemma 2 9B, window, cap", 16, 1024, 16, 8, 256, window=512, cap=50.0),
    ]


def small_cases() -> list[KernelCase]:
    """For the interpreter."""
    float8 = torch.float8_e4m3fn
    return [_of("small", 2, 160, 6, 2, 64), _of("small, float8", 2, 160, 6, 2, 80, 48, cache_dtype=float8)]


def _of(
    name: str,
    num_seqs: int,
    max_tokens: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    window: int | None = None,
    block_size: int = 16,
    cache_dtype: torch.dtype = torch.bfloat16,
    cap: float | None = None,
) -> KernelCase:
    dtype = torch.bfloat16
    num_blocks = max_tokens // block_size

    def make(inputs: Inputs) -> tuple[Any, ...]:
        q = inputs.randn(num_seqs, num_heads + 2 * num_kv_heads, head_dim, dtype=dtype)[:, :num_heads]
        pool = inputs.randn(num_seqs * num_blocks, 2, 2, num_kv_heads, block_size, head_dim, dtype=cache_dtype)
        tables = inputs.permutation(num_seqs * num_blocks, num_seqs, num_blocks)
        lens = inputs.integers(max_tokens // 2, max_tokens + 1, num_seqs)
        return q, pool[:, 1, 0], pool[:, 1, 1], tables, lens, head_dim**-0.5, window, cap

    seen = min(window or max_tokens, max_tokens * 3 // 4)
    traffic = num_seqs * (
        2 * seen * num_kv_heads * head_dim * cache_dtype.itemsize + 2 * num_heads * head_dim * dtype.itemsize
    )
    is_float8 = cache_dtype.itemsize == 1
    return KernelCase(
        family="attention_decode",
        name=f"{name}: {num_seqs} x {max_tokens}, {num_heads}/{num_kv_heads} heads of {head_dim}",
        make=make,
        launch=attention_decode.attention_decode,
        twin=reference.attention_decode,
        tolerance=2e-2,
        traffic_bytes=traffic,
        flops=4 * num_seqs * seen * num_heads * head_dim,
        expected=Expected(
            max_registers=255,
            opcodes_everywhere=("LDGSTS.E.BYPASS.128", "LDSM", "HMMA"),
            forbidden=("LDG.E.U16", "LDG.E.U8"),
        ),
        capabilities=FLOAT8_CAPABILITIES if is_float8 else CAPABILITIES,
        on_tensor_cores=True,
    )
