"""Cases of kernels/gpu/attention_prefill.py: one long prompt's second half, and ragged short ones."""

from typing import Any

import torch

from bench.kernels.case import CAPABILITIES, FLOAT8_CAPABILITIES, Expected, Inputs, KernelCase
from kernels import reference
from kernels.gpu import attention_prefill
from kernels.reference import PrefillMeta

# Hopper multiplies by warp groups (HGMMA); Triton gives Blackwell's data-center parts tcgen05 (UTCHMMA), others HMMA.
_OPCODES = {
    80: ("HMMA", "LDGSTS.E.BYPASS.128"),
    90: ("HGMMA", "LDGSTS.E.BYPASS.128"),
    100: ("UTCHMMA", "LDGSTS.E.BYPASS.128"),
    120: ("HMMA", "LDGSTS.E.BYPASS.128"),
}


def cases() -> list[KernelCase]:
    """A chunk of 4096 after 4096 cached ones; Qwen2.5 with ragged prompts."""
    return [
        _of("Llama 3 8B", [4096], [4096], 32, 8, 128),
        _of("Qwen2.5 0.5B, ragged", [700, 17, 1, 1330], [0, 512, 2000, 64], 14, 2, 64),
        _of("Mistral 7B, window, float8", [4096], [4096], 32, 8, 128, 4096, torch.float8_e4m3fn),
        _of("heads of 80", [2048], [0], 32, 32, 80),
        _of("heads of 256", [2048], [0], 8, 4, 256),
        _of("Gemma 2 9B, window, cap", [2048], [2048], 16, 8, 256, 512, cap=50.0),
    ]


def small_cases() -> list[KernelCase]:
    """For the interpreter."""
    float8 = torch.float8_e4m3fn
    return [
        _of("small", [70, 3], [40, 0], 6, 2, 64),
        _of("small, float8", [30, 3], [40, 7], 6, 2, 80, window=48, cache_dtype=float8),
    ]


def _of(
    name: str,
    new: list[int],
    context_lens: list[int],
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    window: int | None = None,
    cache_dtype: torch.dtype = torch.bfloat16,
    cap: float | None = None,
) -> KernelCase:
    dtype, block_size = torch.bfloat16, 16
    is_float8 = cache_dtype.itemsize == 1
    lens = [context + num_new for context, num_new in zip(context_lens, new, strict=True)]
    num_tokens = sum(new)

    def make(inputs: Inputs) -> tuple[Any, ...]:
        qkv = inputs.randn(num_tokens, num_heads + 2 * num_kv_heads, head_dim, dtype=dtype)
        q, k, v = torch.split(qkv, [num_heads, num_kv_heads, num_kv_heads], dim=1)
        num_blocks = [-(-length // block_size) for length in lens]
        pool = inputs.randn(sum(num_blocks), 2, 2, num_kv_heads, block_size, head_dim, dtype=cache_dtype)
        ids = iter(inputs.permutation(sum(num_blocks), sum(num_blocks)).tolist())
        tables = [[next(ids) for _ in range(count)] for count in num_blocks]
        cu_seqlens = [sum(new[:index]) for index in range(len(new) + 1)]
        meta = PrefillMeta.of(cu_seqlens, context_lens, tables, inputs.device)
        return q, k, v, pool[:, 1, 0], pool[:, 1, 1], meta, head_dim**-0.5, window, cap

    pairs = sum(
        min(window or length, context + (place + 1))
        for context, num_new, length in zip(context_lens, new, lens, strict=True)
        for place in range(num_new)
    )
    heads_bytes = (2 * num_heads + 2 * num_kv_heads) * head_dim * dtype.itemsize
    return KernelCase(
        family="attention_prefill",
        name=f"{name}: {num_tokens} tokens, {num_heads}/{num_kv_heads} heads of {head_dim}",
        make=make,
        launch=attention_prefill.attention_prefill,
        twin=reference.attention_prefill,
        tolerance=2e-2,
        traffic_bytes=num_tokens * heads_bytes + 2 * sum(context_lens) * num_kv_heads * head_dim * cache_dtype.itemsize,
        flops=4 * pairs * num_heads * head_dim,
        expected=Expected(opcodes=_OPCODES, forbidden=("LDG.E.U16", "LDG.E.U8")),
        capabilities=FLOAT8_CAPABILITIES if is_float8 else CAPABILITIES,
        on_tensor_cores=True,
    )
